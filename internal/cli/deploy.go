package cli

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/appconfig"
	"github.com/roost-run/roost/internal/client"
	"github.com/roost-run/roost/machines"
)

// deployFlags are what a deploy may be told beside the file.
type deployFlags struct {
	config, image, org, region string
	env                        []string
	fileLocal, fileLiteral     []string
	fileSecret                 []string
	build                      buildFlags

	release        client.NewRelease
	maxUnavailable float64
	smoke, ha      bool
	wait, command  string

	detach, queue, buildOnly, yes, asJSON bool
}

func newDeployCmd(f *factory) *cobra.Command {
	var o deployFlags
	cmd := &cobra.Command{
		Use: "deploy [DIR]", Short: "Build an app and bring its machines to it", Args: cobra.MaximumNArgs(1),
		Long: `Build the app in DIR (default: this directory) and bring its machines to it, as its
fly.toml says. What changed since the last build is sent to the host and built
there; with --image or build.image nothing is built.

The rollout is the platform's: it goes on when this command is interrupted, and a
release that does not come up is taken back, with the reason. The command ends
when the app has answered at its public address, and prints that.

An app that does not exist is made: asked for on a terminal, without asking where
there is none or with --yes.

Unknown keys of the file are warned of; ` + "`roost config validate`" + ` refuses them.`,
		Example: "  roost deploy\n  roost deploy ./shop --app shop-staging --env STAGE=test\n  roost deploy --image registry.localhost/shop:v3 --strategy bluegreen\n  roost deploy --detach --description \"new checkout\"",
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := refuseForeign(cmd); err != nil {
				return err
			}
			dir := "."
			if len(args) == 1 {
				dir = args[0]
			}
			if fi, err := os.Stat(dir); err != nil || !fi.IsDir() {
				return usageError{fmt.Errorf("%s is not a directory: name the one that holds the app", dir)}
			}
			if err := o.read(cmd); err != nil {
				return usageError{err}
			}
			return f.deploy(cmd.Context(), &o, dir)
		},
	}
	fl := cmd.Flags()
	fl.StringVarP(&o.config, "config", "c", "", "the app's config (default: fly.toml in DIR)")
	fl.StringVarP(&o.image, "image", "i", "", "deploy this image; nothing is built")
	fl.StringArrayVarP(&o.env, "env", "e", nil, "environment variable `NAME=VALUE`, beside those of the file (repeatable)")
	fl.StringArrayVar(&o.fileLocal, "file-local", nil, "put a local file into the machines: `GUEST_PATH=LOCAL_PATH` (repeatable)")
	fl.StringArrayVar(&o.fileLiteral, "file-literal", nil, "put a text into the machines: `GUEST_PATH=TEXT` (repeatable)")
	fl.StringArrayVar(&o.fileSecret, "file-secret", nil, "put a secret, which is base64, into the machines: `GUEST_PATH=NAME` (repeatable)")
	fl.StringVar(&o.region, "primary-region", "", "region of new machines (default: the file's)")
	fl.StringVarP(&o.org, "org", "o", string(root.DefaultOrg), "organisation of an app that is made")
	o.build.register(cmd)
	r := &o.release
	fl.StringVar(&r.Strategy, "strategy", "", "rolling, bluegreen, canary or immediate (default: the file's, else rolling)")
	fl.Float64Var(&o.maxUnavailable, "max-unavailable", appconfig.DefaultMaxUnavailable, "rolling: so many machines at once, or such a share of them below 1")
	fl.IntVar(&r.MaxConcurrent, "max-concurrent", appconfig.DefaultMaxConcurrent, "immediate and bluegreen: so many machines at once")
	fl.StringVar(&o.wait, "wait-timeout", "", "for each machine to start and pass its checks (default: the file's, else 5m)")
	fl.StringVar(&o.command, "release-command-timeout", "", "for the release command; none is unlimited (default: the file's, else 5m)")
	fl.BoolVar(&r.SkipRelease, "skip-release-command", false, "do not run the release command")
	fl.BoolVar(&r.RunRelease, "run-release-command", false, "run the release command although nothing has changed since it ran")
	fl.BoolVar(&o.smoke, "smoke-checks", true, "watch machines for a moment after they have started")
	fl.BoolVar(&o.ha, "ha", false, "first machines of a group come in twos")
	fl.BoolVar(&r.UpdateOnly, "update-only", false, "make no new machines")
	fl.StringSliceVar(&r.Regions, "regions", nil, "only machines in these regions")
	fl.StringSliceVar(&r.Regions, "only-regions", nil, "same as --regions")
	fl.StringSliceVar(&r.Groups, "process-groups", nil, "only these process groups")
	fl.StringSliceVar(&r.Machines, "only-machines", nil, "only these machines")
	fl.StringVar(&r.Description, "description", "", "what the list of releases says of it")
	fl.StringVar(&r.Webhook, "webhook", "", "told of the end by POST (default: the file's deploy.webhook)")
	fl.BoolVar(&o.detach, "detach", false, "do not wait for its end")
	fl.BoolVar(&o.queue, "queue", false, "while another release is rolled out, wait for its end")
	fl.BoolVar(&o.buildOnly, "build-only", false, "build, print the image, and deploy nothing")
	fl.BoolVarP(&o.yes, "yes", "y", false, "do not ask")
	_ = fl.MarkHidden("only-regions")
	acceptForeign(cmd)
	return f.onApp(jsonFlag(cmd, &o.asJSON))
}

// read checks the flags that are not plain values.
func (o *deployFlags) read(cmd *cobra.Command) error {
	given := cmd.Flags().Changed
	if given("max-unavailable") {
		if o.maxUnavailable <= 0 {
			return fmt.Errorf("--max-unavailable %v must be more than 0: a number of machines, or a share such as 0.33", o.maxUnavailable)
		}
		o.release.MaxUnavailable = &o.maxUnavailable
	}
	if !given("max-concurrent") {
		o.release.MaxConcurrent = 0
	}
	if given("smoke-checks") {
		o.release.SmokeChecks = &o.smoke
	}
	if given("ha") {
		o.release.HA = &o.ha
	}
	var err error
	if o.release.WaitTimeout, err = timeout("--wait-timeout", o.wait); err != nil {
		return err
	}
	if o.command == "none" {
		o.command = "0s"
	}
	if o.release.ReleaseTimeout, err = timeout("--release-command-timeout", o.command); err != nil {
		return err
	}
	if o.buildOnly && o.image != "" {
		return errors.New("--build-only and --image: there is nothing to build")
	}
	return nil
}

// timeout reads a duration, or a number of seconds.
func timeout(flag, s string) (string, error) {
	if s == "" {
		return "", nil
	}
	if n, err := strconv.Atoi(s); err == nil {
		s = strconv.Itoa(n) + "s"
	}
	d, err := time.ParseDuration(s)
	if err != nil || d < 0 {
		return "", fmt.Errorf("%s %q is not a duration such as 5m", flag, s)
	}
	return d.String(), nil
}

// deploy is the command: config, app, image, release, rollout.
func (f *factory) deploy(ctx context.Context, o *deployFlags, dir string) error {
	config, app, err := f.readDeploy(o, dir)
	if err != nil {
		return err
	}
	// What can be found wrong here is, before an app is made for nothing.
	image, build, err := f.deploySource(o, config, app, dir)
	if err != nil {
		return err
	}
	c, err := f.client()
	if err != nil {
		return err
	}
	if err := f.ensureApp(ctx, c, app, o); err != nil {
		return err
	}
	in := o.release
	if in.Image, err = f.deployImage(ctx, c, image, build, o.build.progress); err != nil {
		if ctx.Err() != nil {
			return hintError{err, "nothing was deployed"}
		}
		return err
	}
	if o.buildOnly {
		if o.asJSON {
			return f.io.JSON(map[string]string{"image": in.Image})
		}
		f.io.Printf("%s\n", in.Image)
		return nil
	}
	if config != nil {
		if in.Definition, err = config.JSON(); err != nil {
			return err
		}
	}
	r, err := c.CreateRelease(ctx, app, in)
	for o.queue && codeOf(err) == "release_in_progress" {
		if err = f.untilFree(ctx, c, app); err == nil {
			r, err = c.CreateRelease(ctx, app, in)
		}
	}
	if err != nil {
		return f.unreleased(app, err)
	}
	if o.detach {
		return f.leave(app, r, o.asJSON)
	}
	return f.seeThrough(ctx, c, app, r, o.asJSON)
}

// untilFree waits for the end of the rollout under way, whatever it is.
func (f *factory) untilFree(ctx context.Context, c *client.Client, app string) error {
	all, err := c.Releases(ctx, app)
	if err != nil || len(all) == 0 || all[0].Final() { // it ended meanwhile
		return err
	}
	r := all[0]
	f.io.Notef("Release v%d of %s (%s by %s) is being rolled out: waiting for its end", r.Version, app, first(r.Description, r.Reason), r.Author)
	_, err = c.FollowRelease(ctx, app, r.Version, "", nil)
	return err
}

// readDeploy reads the file and puts the flags over it; no config where there
// is no file and none is needed.
func (f *factory) readDeploy(o *deployFlags, dir string) (*appconfig.Config, string, error) {
	file, err := readAppFile(o.config, dir)
	switch {
	case root.IsKind(err, root.NotFound) && o.config == "" && o.image != "":
		app, err := f.appName() // the current release's config with another image
		return nil, app, err
	case root.IsKind(err, root.NotFound):
		return nil, "", hintError{err, "`roost launch` writes one; --config names another file"}
	case err != nil:
		return nil, "", err
	}
	if err := file.usable(f, "nothing was deployed"); err != nil {
		return nil, "", hintError{err, "`roost config validate` lists them again"}
	}
	config := file.config
	app, err := f.appOfFile(&file)
	if err != nil {
		return nil, "", err
	}
	config.App = app
	if o.region != "" {
		config.PrimaryRegion = o.region
	}
	env, err := pairs("--env", o.env, nil)
	if err != nil {
		return nil, "", err
	}
	for name, value := range env {
		if config.Env == nil {
			config.Env = appconfig.Env{}
		}
		config.Env[name] = value
	}
	return config, app, o.files(config)
}

// files adds the files of flags, for all process groups.
func (o *deployFlags) files(config *appconfig.Config) error {
	add := func(flag string, list []string, set func(file *appconfig.File, value string) error) error {
		values, err := pairs(flag, list, nil)
		if err != nil {
			return err
		}
		for path, value := range values {
			file := appconfig.File{GuestPath: path, Processes: config.Groups()}
			if err := set(&file, value); err != nil {
				return usageError{fmt.Errorf("%s: %w", flag, err)}
			}
			config.Files = append(config.Files, file)
		}
		return nil
	}
	text := func(file *appconfig.File, value string) error {
		encoded := base64.StdEncoding.EncodeToString([]byte(value))
		file.RawValue = &encoded
		return nil
	}
	return errors.Join(
		add("--file-local", o.fileLocal, func(file *appconfig.File, value string) error {
			content, err := os.ReadFile(value)
			if err != nil {
				return err
			}
			return text(file, string(content))
		}),
		add("--file-literal", o.fileLiteral, text),
		add("--file-secret", o.fileSecret, func(file *appconfig.File, value string) error {
			file.SecretName = value
			return nil
		}),
	)
}

// ensureApp makes an app that does not exist. A person is asked: the name may
// be a mistake.
func (f *factory) ensureApp(ctx context.Context, c *client.Client, app string, o *deployFlags) error {
	_, err := c.App(ctx, app)
	if apiErr, ok := errors.AsType[*machines.Error](err); !ok || apiErr.Status != http.StatusNotFound {
		return err
	}
	if !o.yes && f.io.InTTY && f.io.ErrTTY {
		ok, err := f.io.Confirm(fmt.Sprintf("There is no app %s. Make it in organisation %s?", app, o.org))
		if err != nil {
			return err
		}
		if !ok {
			return hintError{errors.New("nothing was deployed"), "--app names another app; `roost app list` shows them"}
		}
	}
	if _, err := c.CreateApp(ctx, machines.CreateAppRequest{Name: app, OrgSlug: o.org}); err != nil {
		return err
	}
	f.io.Notef("App %s created in organisation %s", app, o.org)
	return nil
}

// deploySource is where the image comes from: one that exists, by its name, or
// a build of dir.
func (f *factory) deploySource(o *deployFlags, config *appconfig.Config, app, dir string) (image string, r client.BuildRequest, err error) {
	var build appconfig.Build
	if config != nil && config.Build != nil {
		build = *config.Build
	}
	if image := first(o.image, build.Image); image != "" && !o.buildOnly {
		return image, r, nil
	}
	if r, err = o.build.request(app, dir); err != nil {
		return "", r, err
	}
	beside := func(path string) (string, error) {
		switch {
		case strings.Contains(path, "://"):
			return "", fmt.Errorf("build.dockerfile %s: a Dockerfile elsewhere is not supported, keep it in the project", path)
		case path == "" || filepath.IsAbs(path):
			return path, nil
		}
		return filepath.Join(dir, path), nil
	}
	if r.Dockerfile == "" {
		if r.Dockerfile, err = beside(build.Dockerfile); err != nil {
			return "", r, err
		}
	}
	if r.IgnoreFile == "" {
		if r.IgnoreFile, err = beside(build.IgnoreFile); err != nil {
			return "", r, err
		}
	}
	r.Target = first(r.Target, build.Target)
	for name, value := range build.Args {
		if _, given := r.Args[name]; !given {
			r.Args[name] = value
		}
	}
	return "", r, r.Check()
}

// deployImage builds the image unless there is one.
func (f *factory) deployImage(ctx context.Context, c *client.Client, image string, r client.BuildRequest, show string) (string, error) {
	if image != "" {
		f.io.Notef("Image %s", image)
		return image, nil
	}
	began := f.io.Now()
	built, err := f.buildImage(ctx, c, r, show)
	if err != nil {
		return "", err
	}
	f.io.Notef("Image %s, built in %s", built.Ref, short(f.io.Now().Sub(began)))
	return built.Ref, nil
}
