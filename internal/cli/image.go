package cli

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/moby/patternmatcher"
	"github.com/moby/patternmatcher/ignorefile"
	"github.com/spf13/cobra"

	"github.com/roost-run/roost/internal/client"
	"github.com/roost-run/roost/machines"
)

func newImageCmd(f *factory) *cobra.Command {
	return group("image", "Images on the host", []string{"images"}, newImageListCmd(f), newImagePullCmd(f), newImageLoadCmd(f), newImageBuildCmd(f), newImageRemoveCmd(f))
}

func newImageListCmd(f *factory) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List images", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := f.client()
			if err != nil {
				return err
			}
			images, err := c.Images(cmd.Context())
			if err != nil {
				return err
			}
			if asJSON {
				return f.io.JSON(images)
			}
			rows := make([][]string, 0, len(images))
			for _, i := range images {
				name, _, _ := strings.Cut(i.Ref, "@")
				used := ""
				if i.InUse {
					used = "in use"
				}
				digest := i.Digest
				if f.io.OutTTY && len(digest) > shortDigest {
					digest = digest[:shortDigest]
				}
				rows = append(rows, []string{name, digest, fmt.Sprintf("%.1f MB", mb(i.Size)), f.io.Time(i.CreatedAt), used})
			}
			return f.table("No images yet; `roost image build`, `load` and `pull` get them", []string{"image", "digest", "size", "created", ""}, rows)
		},
	}
	return jsonFlag(cmd, &asJSON)
}

// shortDigest is "sha256:" and as much as a person compares.
const shortDigest = 19

// printImage prints an image that a command made or fetched.
func (f *factory) printImage(i client.Image, asJSON bool) error {
	if asJSON {
		return f.io.JSON(i)
	}
	f.io.Printf("%s\n", i.Ref)
	return nil
}

func newImagePullCmd(f *factory) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use: "pull REFERENCE", Short: "Fetch an image from its registry", Args: cobra.ExactArgs(1), Example: "  roost image pull docker.io/library/redis:7",
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := f.client()
			if err != nil {
				return err
			}
			last := ""
			image, err := c.PullImage(cmd.Context(), args[0], func(p client.Progress) {
				if p.State != last && p.Layer == "" {
					last = p.State
					f.io.Notef("%s: %s", args[0], p.State)
				}
			})
			if err != nil {
				return err
			}
			return f.printImage(image, asJSON)
		},
	}
	return jsonFlag(cmd, &asJSON)
}

func newImageLoadCmd(f *factory) *cobra.Command {
	var asJSON bool
	var as string
	cmd := &cobra.Command{
		Use: "load FILE", Short: "Load images from an OCI or docker archive; - is standard input", Args: cobra.ExactArgs(1), Example: "  docker save shop | roost image load -",
		RunE: func(cmd *cobra.Command, args []string) error {
			archive := f.io.In
			if args[0] != "-" {
				file, err := os.Open(args[0])
				if err != nil {
					return usageError{err}
				}
				defer file.Close()
				archive = file
			}
			c, err := f.client()
			if err != nil {
				return err
			}
			images, err := c.LoadImage(cmd.Context(), archive, as)
			if err != nil {
				return err
			}
			if asJSON {
				return f.io.JSON(images)
			}
			for _, i := range images {
				if err := f.printImage(i, false); err != nil {
					return err
				}
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&as, "as", "", "name it so, whatever the archive says")
	return jsonFlag(cmd, &asJSON)
}

func newImageRemoveCmd(f *factory) *cobra.Command {
	return &cobra.Command{
		Use: "remove REFERENCE...", Aliases: []string{"rm"}, Short: "Forget images", Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, refs []string) error {
			c, err := f.client()
			if err != nil {
				return err
			}
			for _, ref := range refs {
				if err := c.RemoveImage(cmd.Context(), ref); err != nil {
					return err
				}
				f.io.Notef("Image %s removed", ref)
			}
			return nil
		},
	}
}

func newImageBuildCmd(f *factory) *cobra.Command {
	var asJSON bool
	var pkg string
	cmd := &cobra.Command{
		Use:   "build DIR",
		Short: "Make an image from a Go program; no Dockerfile is needed",
		Long: `Make an image from a Go program: a static binary, CA certificates, time zones
and a user that is not root. DIR is sent to the host and built there; hidden
folders and what .dockerignore names stay here. Interrupting this command
cancels the build.`,
		Example: "  roost image build . --app shop\n  roost image build . --package ./cmd/shop --app shop",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			app, err := f.appName()
			if err != nil {
				return err
			}
			c, err := f.client()
			if err != nil {
				return err
			}
			if fi, err := os.Stat(args[0]); err != nil || !fi.IsDir() {
				return usageError{fmt.Errorf("%s is not a directory: name the one that holds the program", args[0])}
			}
			ignored, err := readIgnore(args[0])
			if err != nil {
				return err
			}
			pr, pw := io.Pipe()
			sent := make(chan error, 1)
			go func() { // ends when everything was read or the request ended
				err := writeContext(cmd.Context(), pw, args[0], ignored)
				pw.CloseWithError(err)
				sent <- err
			}()
			var last string
			image, err := c.BuildImage(cmd.Context(), app, "go", map[string]string{"package": pkg}, pr, func(p client.Progress) {
				if p.Log != nil {
					last = *p.Log
					f.io.Notef("%s", last)
				}
			})
			_ = pr.Close() // releases the writer if the reply came early
			if broken := <-sent; broken != nil && !errors.Is(broken, io.ErrClosedPipe) && cmd.Context().Err() == nil {
				return broken // why the request failed
			}
			if err != nil {
				return shownOnce(err, last)
			}
			return f.printImage(image, asJSON)
		},
	}
	cmd.Flags().StringVar(&pkg, "package", ".", "the main package, relative to DIR")
	return f.onApp(jsonFlag(cmd, &asJSON))
}

// shownOnce cuts from a build's error the output that was shown as its log.
func shownOnce(err error, last string) error {
	apiErr, ok := errors.AsType[*machines.Error](err)
	if !ok || last == "" {
		return err
	}
	summary, output, ok := strings.Cut(apiErr.Message, "\n")
	if !ok || !strings.HasSuffix(strings.TrimSpace(output), strings.TrimSpace(last)) {
		return err
	}
	short := *apiErr
	short.Message = strings.TrimSuffix(summary, ":")
	return &short
}

// readIgnore reads dir's .dockerignore; without one nothing is ignored.
func readIgnore(dir string) (*patternmatcher.PatternMatcher, error) {
	var patterns []string
	file, err := os.Open(filepath.Join(dir, ".dockerignore"))
	if err == nil {
		defer file.Close()
		patterns, err = ignorefile.ReadAll(file)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read .dockerignore: %w", err)
	}
	return patternmatcher.New(patterns)
}

// writeContext sends the regular files, folders and links of dir.
func writeContext(ctx context.Context, w io.Writer, dir string, ignored *patternmatcher.PatternMatcher) error {
	tw := tar.NewWriter(w)
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		name, err := filepath.Rel(dir, path)
		if err != nil || name == "." {
			return err
		}
		if d.IsDir() && strings.HasPrefix(d.Name(), ".") {
			return fs.SkipDir
		}
		skip, err := ignored.MatchesOrParentMatches(name)
		if err != nil {
			return fmt.Errorf(".dockerignore: %w", err)
		}
		if skip && d.IsDir() && !ignored.Exclusions() {
			return fs.SkipDir
		}
		if skip {
			return nil
		}
		fi, err := d.Info()
		if err != nil {
			return err
		}
		link := ""
		if fi.Mode()&fs.ModeSymlink != 0 {
			if link, err = os.Readlink(path); err != nil {
				return err
			}
		} else if !fi.Mode().IsRegular() && !fi.IsDir() {
			return nil // sockets and devices are not part of a program
		}
		h, err := tar.FileInfoHeader(fi, link)
		if err != nil {
			return err
		}
		h.Name = filepath.ToSlash(name)
		if err := tw.WriteHeader(h); err != nil {
			return err
		}
		if !fi.Mode().IsRegular() {
			return nil
		}
		file, err := os.Open(path)
		if err != nil {
			return err
		}
		defer file.Close()
		_, err = io.CopyN(tw, file, fi.Size())
		return err
	})
	if err != nil {
		return fmt.Errorf("send %s: %w", dir, err)
	}
	return tw.Close()
}
