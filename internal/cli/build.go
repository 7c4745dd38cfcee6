package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	buildkit "github.com/moby/buildkit/client"
	"github.com/moby/buildkit/util/progress/progressui"
	"github.com/spf13/cobra"

	"github.com/roost-run/roost/internal/client"
	"github.com/roost-run/roost/machines"
)

// buildFlags are those of a build, under the names that flyctl gives them.
type buildFlags struct {
	dockerfile, ignoreFile, target, pkg string
	args, secrets, labels, appSecrets   []string
	noCache                             bool
	progress                            string
}

func (b *buildFlags) register(cmd *cobra.Command) {
	fs := cmd.Flags()
	fs.StringVar(&b.dockerfile, "dockerfile", "", "the Dockerfile; default: the directory's")
	fs.StringVar(&b.ignoreFile, "ignorefile", "", "what not to send; default: <Dockerfile>.dockerignore, else .dockerignore")
	fs.StringVar(&b.target, "build-target", "", "stop at this stage of the Dockerfile")
	fs.StringArrayVar(&b.args, "build-arg", nil, "set a build argument: NAME=VALUE, or NAME to pass the environment's")
	fs.StringArrayVar(&b.secrets, "build-secret", nil, "let RUN --mount=type=secret,id=NAME read a value: NAME=VALUE, or NAME=@FILE")
	fs.StringArrayVar(&b.appSecrets, "app-secret", nil, "let it read one of the app's own secrets: NAME")
	fs.StringArrayVar(&b.labels, "label", nil, "label the image: NAME=VALUE")
	fs.StringVar(&b.pkg, "package", "", "without a Dockerfile: the Go program's main package, relative to the directory")
	fs.BoolVar(&b.noCache, "no-cache", false, "run every step again")
	fs.StringVar(&b.progress, "progress", "auto", "how the build is shown: auto, plain, tty or quiet")
}

// request is the build of dir for app.
func (b *buildFlags) request(app, dir string) (client.BuildRequest, error) {
	r := client.BuildRequest{
		App: app, Dir: dir, Dockerfile: b.dockerfile, IgnoreFile: b.ignoreFile, Target: b.target, Package: b.pkg,
		NoCache: b.noCache, AppSecrets: b.appSecrets,
	}
	if b.pkg != "" {
		r.Kind = client.BuildGo
	}
	if dir, err := os.UserCacheDir(); err == nil {
		r.Cache = filepath.Join(dir, "roost", "contexts")
	}
	var err error
	if r.Args, err = pairs("--build-arg", b.args, os.LookupEnv); err != nil {
		return r, err
	}
	if r.Labels, err = pairs("--label", b.labels, nil); err != nil {
		return r, err
	}
	if r.Secrets, err = pairs("--build-secret", b.secrets, os.LookupEnv); err != nil {
		return r, err
	}
	for name, v := range r.Secrets {
		if file, ok := strings.CutPrefix(v, "@"); ok {
			data, err := os.ReadFile(file)
			if err != nil {
				return r, usageError{fmt.Errorf("--build-secret %s: %w", name, err)}
			}
			r.Secrets[name] = string(data)
		}
	}
	return r, nil
}

// pairs reads NAME=VALUE flags; a bare NAME takes the value that lookup has.
func pairs(flag string, list []string, lookup func(string) (string, bool)) (map[string]string, error) {
	out := make(map[string]string, len(list))
	for _, item := range list {
		name, value, ok := strings.Cut(item, "=")
		if !ok && lookup != nil {
			value, ok = lookup(name)
		}
		if !ok || name == "" {
			return nil, usageError{fmt.Errorf("%s %s: want NAME=VALUE", flag, item)}
		}
		out[name] = value
	}
	return out, nil
}

// buildImage sends and builds a directory, and shows how it goes as the flag
// wants it.
func (f *factory) buildImage(ctx context.Context, c *client.Client, r client.BuildRequest, show string) (client.Image, error) {
	mode := progressui.DisplayMode(show)
	if !slices.Contains([]string{"auto", "plain", "tty", "quiet"}, show) {
		return client.Image{}, usageError{fmt.Errorf("--progress %s: not one of auto, plain, tty, quiet", show)}
	}
	if mode == progressui.AutoMode && !f.io.ErrTTY {
		mode = progressui.PlainMode
	}
	d := &buildDisplay{f: f, mode: mode}
	image, err := c.Build(ctx, r, d.progress)
	d.close()
	if err != nil {
		return image, shownOnce(err, d.last)
	}
	return image, nil
}

// buildDisplay shows a build. BuildKit's own display begins with its first
// status.
type buildDisplay struct {
	f    *factory
	mode progressui.DisplayMode
	last string // line of a build without BuildKit
	sent bool

	news chan *buildkit.SolveStatus
	done sync.WaitGroup
}

func (d *buildDisplay) progress(p client.Progress) {
	switch {
	case p.Upload != nil:
		d.upload(p.Upload)
	case p.Log != nil && d.mode != progressui.QuietMode:
		d.last = *p.Log
		d.f.io.Notef("%s", d.last)
	case p.Status != nil:
		var s buildkit.SolveStatus
		if json.Unmarshal(p.Status, &s) != nil {
			return // news of a later BuildKit
		}
		if d.news == nil {
			d.begin()
		}
		d.news <- &s
	}
}

// largeContext is how much is sent before it is said that less may do: more
// than source usually has, and what takes a while over a slow line.
const largeContext = 200 << 20

func (d *buildDisplay) upload(u *client.Upload) {
	if d.mode == progressui.QuietMode || u.Sending == 0 || d.sent {
		return
	}
	d.sent = true
	d.f.io.Notef("sending %d of %d files (%.1f MB)", u.Sending, u.Files, mb(u.Bytes))
	if u.Bytes > largeContext {
		d.f.io.Notef("Hint: that is much; what the build does not need can be named in .dockerignore")
	}
}

func (d *buildDisplay) begin() {
	d.news = make(chan *buildkit.SolveStatus)
	shown, err := progressui.NewDisplay(d.f.io.Err, d.mode)
	if err != nil { // no terminal after all
		shown, _ = progressui.NewDisplay(d.f.io.Err, progressui.PlainMode)
	}
	d.done.Go(func() {
		// Ends with the channel: what was told before a failure is shown too.
		_, _ = shown.UpdateFrom(context.Background(), d.news)
	})
}

func (d *buildDisplay) close() {
	if d.news != nil {
		close(d.news)
		d.done.Wait()
	}
}

func newImageBuildCmd(f *factory) *cobra.Command {
	var asJSON bool
	var flags buildFlags
	cmd := &cobra.Command{
		Use:   "build [DIR]",
		Short: "Make an image from a Dockerfile, or from a Go program without one",
		Long: `Make an image from the Dockerfile in DIR (default: this directory). Without a
Dockerfile a Go program becomes an image: a static binary, CA certificates, time
zones and a user that is not root. What changed in DIR since the last build is
sent to the host and built there; what .dockerignore names stays here.
Interrupting this command cancels the build.`,
		Example: "  roost image build --app shop\n  roost image build . --build-arg VERSION=2 --build-secret TOKEN=@token.txt --app shop\n  roost image build . --package ./cmd/shop --app shop",
		Args:    cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			app, err := f.appName()
			if err != nil {
				return err
			}
			dir := "."
			if len(args) == 1 {
				dir = args[0]
			}
			if fi, err := os.Stat(dir); err != nil || !fi.IsDir() {
				return usageError{fmt.Errorf("%s is not a directory: name the one that holds the program", dir)}
			}
			c, err := f.client()
			if err != nil {
				return err
			}
			r, err := flags.request(app, dir)
			if err != nil {
				return err
			}
			image, err := f.buildImage(cmd.Context(), c, r, flags.progress)
			if err != nil {
				return err
			}
			return f.printImage(image, asJSON)
		},
	}
	flags.register(cmd)
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
