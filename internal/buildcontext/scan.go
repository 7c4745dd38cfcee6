package buildcontext

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"github.com/moby/patternmatcher"
	"github.com/moby/patternmatcher/ignorefile"
	digest "github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"

	root "github.com/roost-run/roost"
)

// Options of Scan.
type Options struct {
	// Ignore is the ignore file; "" is <Dockerfile>.dockerignore if that
	// exists, else the directory's .dockerignore if that does.
	Ignore     string
	Dockerfile string // path on this computer; may be "" or outside the directory
	NoHidden   bool   // leave out hidden directories
	Cache      string // file with the digests of an earlier scan; "" keeps none
}

// Scanned is a directory with its manifest.
type Scanned struct {
	Manifest
	dir      string
	byDigest map[digest.Digest]Entry
	cache    *cache
}

// Scan lists what of dir is sent. Files whose size and time of change are
// those of an earlier scan are not read again. Kinds: Invalid, TooLarge.
func Scan(ctx context.Context, dir string, o Options) (*Scanned, error) {
	ignored, err := matcher(dir, o)
	if err != nil {
		return nil, err
	}
	s := &Scanned{dir: dir, byDigest: map[digest.Digest]Entry{}, cache: openCache(o.Cache, dir)}
	var infos []fs.FileInfo
	err = filepath.WalkDir(dir, func(file string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		name, err := filepath.Rel(dir, file)
		if err != nil || name == "." {
			return err
		}
		skip, err := ignored.MatchesOrParentMatches(name)
		if err != nil {
			return root.Errorf(root.Invalid, "ignore file: %v", err)
		}
		if d.IsDir() {
			if o.NoHidden && strings.HasPrefix(d.Name(), ".") || skip && !ignored.Exclusions() {
				return fs.SkipDir
			}
		}
		if skip && !d.IsDir() {
			return nil
		}
		fi, err := d.Info()
		if err != nil {
			return err
		}
		e := Entry{Path: filepath.ToSlash(name), Mode: fi.Mode().Type() | fi.Mode().Perm(), MTime: fi.ModTime().Unix()}
		switch fi.Mode().Type() {
		case fs.ModeDir:
			e.MTime = 0 // it changes with what is ignored, too
			if skip {
				e.Size = -1 // only if something in it is wanted: see prune
			}
		case fs.ModeSymlink:
			if e.Link, err = os.Readlink(file); err != nil {
				return err
			}
		case 0:
			e.Size = fi.Size()
		default:
			return nil // sockets and devices are not part of a program
		}
		s.Entries, infos = append(s.Entries, e), append(infos, fi)
		if len(s.Entries) > MaxFiles {
			return root.Errorf(root.TooLarge, "%s has more than %d files: leave out what the build does not need, with a .dockerignore", dir, MaxFiles)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", dir, err)
	}
	if err := s.hash(ctx, infos); err != nil {
		return nil, err
	}
	s.prune()
	slices.SortFunc(s.Entries, func(a, b Entry) int { return Compare(a.Path, b.Path) })
	for _, e := range s.Entries {
		if e.Digest != "" {
			s.byDigest[e.Digest] = e
		}
	}
	s.cache.save()
	return s, s.Check()
}

// hash fills in the digests.
func (s *Scanned) hash(ctx context.Context, infos []fs.FileInfo) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(runtime.GOMAXPROCS(0))
	for i := range s.Entries {
		e := &s.Entries[i]
		if !e.Mode.IsRegular() {
			continue
		}
		if d, ok := s.cache.get(e.Path, infos[i]); ok {
			e.Digest = d
			continue
		}
		g.Go(func() error {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			f, err := s.open(e.Path)
			if err != nil {
				return fmt.Errorf("read %s: %w", e.Path, err)
			}
			defer f.Close()
			d := digest.SHA256.Digester()
			if e.Size, err = io.Copy(d.Hash(), f); err != nil {
				return fmt.Errorf("read %s: %w", e.Path, err)
			}
			e.Digest = d.Digest()
			s.cache.put(e.Path, infos[i], e.Size, e.Digest)
			return nil
		})
	}
	return g.Wait()
}

// prune drops ignored directories that hold nothing wanted.
func (s *Scanned) prune() {
	wanted := map[string]bool{}
	for _, e := range slices.Backward(s.Entries) { // what it holds comes after a directory
		if e.Size < 0 && !wanted[e.Path] {
			continue
		}
		if i := strings.LastIndexByte(e.Path, '/'); i > 0 {
			wanted[e.Path[:i]] = true
		}
	}
	s.Entries = slices.DeleteFunc(s.Entries, func(e Entry) bool { return e.Size < 0 && !wanted[e.Path] })
	for i := range s.Entries {
		s.Entries[i].Size = max(0, s.Entries[i].Size)
	}
}

func (s *Scanned) open(name string) (*os.File, error) {
	return os.OpenInRoot(s.dir, filepath.FromSlash(name))
}

// matcher reads the ignore file.
func matcher(dir string, o Options) (*patternmatcher.PatternMatcher, error) {
	candidates := []string{o.Ignore}
	if o.Ignore == "" {
		candidates = []string{filepath.Join(dir, ".dockerignore")}
		if o.Dockerfile != "" {
			candidates = append([]string{o.Dockerfile + ".dockerignore"}, candidates...)
		}
	}
	for _, name := range candidates {
		f, err := os.Open(name)
		if errors.Is(err, fs.ErrNotExist) && o.Ignore == "" {
			continue
		}
		if err != nil {
			return nil, root.Errorf(root.Invalid, "ignore file: %v", err)
		}
		patterns, err := ignorefile.ReadAll(f)
		if err = errors.Join(err, f.Close()); err != nil {
			return nil, root.Errorf(root.Invalid, "ignore file %s: %v", name, err)
		}
		m, err := patternmatcher.New(patterns)
		if err != nil {
			return nil, root.Errorf(root.Invalid, "ignore file %s: %v", name, err)
		}
		return m, nil
	}
	return patternmatcher.New(nil)
}
