package buildkit

import (
	"bytes"
	"context"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/tonistiigi/fsutil"
	"github.com/tonistiigi/fsutil/types"
)

// File is an entry of a Tree.
type File struct {
	Path    string // with slashes, relative, clean
	Mode    fs.FileMode
	Size    int64
	ModTime time.Time
	Link    string // of a symbolic link
}

// Tree is a build context. BuildKit keeps a copy of the last one and takes only
// files whose size, mode or ModTime differ: a Tree's ModTime must differ where
// its contents do.
type Tree interface {
	// Files lists the entries in the order in which a walk meets them, each
	// directory before what it holds.
	Files() []File
	Open(path string) (io.ReadCloser, error)
}

// Files is a Tree of small files in one directory.
type Files map[string][]byte

// Files implements Tree.
func (f Files) Files() []File {
	var list []File
	for name, data := range f {
		// The contents decide, by a time that nobody sees.
		sum := int64(0)
		for _, c := range data {
			sum = sum*31 + int64(c)
		}
		list = append(list, File{Path: name, Mode: 0o644, Size: int64(len(data)), ModTime: time.Unix(sum&(1<<32-1), 0)})
	}
	slices.SortFunc(list, func(a, b File) int { return strings.Compare(a.Path, b.Path) })
	return list
}

// Open implements Tree.
func (f Files) Open(name string) (io.ReadCloser, error) {
	data, ok := f[name]
	if !ok {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}
	return io.NopCloser(bytes.NewReader(data)), nil
}

// treeFS is a Tree as BuildKit's transfer of files wants it.
type treeFS struct{ tree Tree }

// Walk calls fn with what is below target, "" for all.
func (t *treeFS) Walk(ctx context.Context, target string, fn fs.WalkDirFunc) error {
	target = strings.Trim(target, "/")
	if target == "." {
		target = ""
	}
	skip := ""
	found := target == ""
	for _, f := range t.tree.Files() {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if target != "" && f.Path != target && !strings.HasPrefix(f.Path, target+"/") {
			continue
		}
		found = true
		if skip != "" && strings.HasPrefix(f.Path, skip) {
			continue
		}
		entry := &fsutil.DirEntryInfo{Stat: &types.Stat{
			Path: f.Path, Mode: uint32(f.Mode), Size: f.Size, ModTime: f.ModTime.UnixNano(), Linkname: f.Link,
		}}
		switch err := fn(f.Path, entry, nil); {
		case err == nil:
		case err == fs.SkipDir && f.Mode.IsDir(): //nolint:errorlint // the walk's own convention
			skip = f.Path + "/"
		case err == fs.SkipDir: //nolint:errorlint // the rest of its directory
			skip = f.Path[:strings.LastIndexByte(f.Path, '/')+1]
			if skip == "" {
				return nil
			}
		case err == fs.SkipAll: //nolint:errorlint // the walk's own convention
			return nil
		default:
			return err
		}
	}
	if !found {
		err := fn(target, nil, &os.PathError{Op: "walk", Path: target, Err: os.ErrNotExist})
		if err != fs.SkipDir && err != fs.SkipAll { //nolint:errorlint // the walk's own convention
			return err
		}
	}
	return nil
}

func (t *treeFS) Open(name string) (io.ReadCloser, error) {
	return t.tree.Open(strings.Trim(name, "/"))
}
