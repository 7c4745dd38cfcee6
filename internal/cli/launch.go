package cli

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/atomicfile"
	"github.com/roost-run/roost/internal/client"
	"github.com/roost-run/roost/internal/launch"
	"github.com/roost-run/roost/machines"
)

// launchFlags are what a launch may be told.
type launchFlags struct {
	name, region, org, domain string
	yes, force                bool
	noDeploy, copyConfig      bool
}

func newLaunchCmd(f *factory) *cobra.Command {
	var o launchFlags
	cmd := &cobra.Command{
		Use: "launch [DIR]", Short: "Look at a folder with source, write what a deploy needs, and deploy it", Args: cobra.MaximumNArgs(1),
		Long: `Look at the source in DIR (default: this directory), say what it is and how it
would run here, and write the files that are missing: a Dockerfile, a .dockerignore
and a fly.toml. Django, Flask, FastAPI, Go, Node, static sites and folders with a
Dockerfile are known. Nothing of the source is executed.

Files that are there stay as they are unless --force says otherwise. A fly.toml that
is there is used. On a terminal it asks for the app's name and whether to deploy;
elsewhere it asks nothing, and deploys only with --yes.`,
		Example: "  roost launch\n  roost launch ./shop --name shop --no-deploy\n  roost launch --yes",
		RunE: func(cmd *cobra.Command, args []string) error {
			dir := "."
			if len(args) == 1 {
				dir = args[0]
			}
			if fi, err := os.Stat(dir); err != nil || !fi.IsDir() {
				return usageError{fmt.Errorf("%s is not a directory: name the one that holds the app", dir)}
			}
			if o.name = first(o.name, f.app); o.name != "" {
				if _, err := root.ParseAppName(o.name); err != nil {
					return usageError{err}
				}
			}
			return f.launch(cmd.Context(), &o, dir)
		},
	}
	fl := cmd.Flags()
	fl.StringVar(&o.name, "name", "", "the app's name (default: the folder's)")
	fl.StringVarP(&o.region, "region", "r", "", "primary region (default: the host's)")
	fl.StringVarP(&o.org, "org", "o", string(root.DefaultOrg), "organisation of the app")
	fl.StringVar(&o.domain, "domain", "", "the platform's domain: the app answers at NAME.DOMAIN (default: asked of the platform, else localhost)")
	fl.BoolVarP(&o.yes, "yes", "y", false, "do not ask; deploy")
	fl.BoolVar(&o.force, "force", false, "overwrite files that are there")
	fl.BoolVar(&o.noDeploy, "no-deploy", false, "only write the files")
	fl.BoolVar(&o.copyConfig, "copy-config", false, "use the fly.toml that is there, with --name's name")
	return f.onApp(cmd)
}

// launch is the command.
func (f *factory) launch(ctx context.Context, o *launchFlags, dir string) error {
	folder, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	existing, err := f.existingConfig(o, dir)
	if err != nil {
		return err
	}
	if o.domain == "" {
		o.domain = f.platformDomain(ctx)
	}
	plan, err := launch.Scan(os.DirFS(dir), launch.Options{
		App: first(o.name, existing), Folder: filepath.Base(folder), Region: root.Region(o.region), Domain: o.domain,
	})
	if err != nil {
		if root.IsKind(err, root.NotFound) {
			return hintError{err, "write a Dockerfile, then run `roost launch` again"}
		}
		return err
	}
	if o.name == "" && existing == "" && !o.yes {
		name, err := f.io.Ask(ctx, "Name of the app", plan.App, func(s string) error { _, err := root.ParseAppName(s); return err })
		if err != nil {
			return err
		}
		if name != plan.App { // it is in the files, too
			o.name = name
			return f.launch(ctx, o, dir)
		}
	}
	f.introduce(plan, existing != "")
	if err := f.writePlan(o, dir, plan, existing); err != nil {
		return err
	}
	for _, line := range plan.Todo {
		f.io.Notef("Note: %s", line)
	}
	deploy := o.yes && !o.noDeploy
	if !o.yes && !o.noDeploy {
		if deploy, err = f.io.Confirm(fmt.Sprintf("Deploy %s now?", plan.App)); err != nil {
			return err
		}
	}
	if !deploy {
		f.next(plan, dir)
		return nil
	}
	return f.deployPlan(ctx, o, plan, dir)
}

// domainTimeout bounds the question for the platform's domain: the files can
// be written without an answer.
const domainTimeout = 3 * time.Second

// platformDomain is where apps answer, or "localhost" if nobody can say.
func (f *factory) platformDomain(ctx context.Context) string {
	ctx, cancel := context.WithTimeout(ctx, domainTimeout)
	defer cancel()
	if c, err := f.client(); err == nil {
		hosts, err := c.Hosts(ctx)
		for _, h := range hosts {
			if err == nil && h.Local != nil && h.Local.Domain != "" {
				return h.Local.Domain
			}
		}
	}
	return "localhost"
}

// existingConfig returns the app that a fly.toml in dir names, "" if there is
// none or a new one is to take its place.
func (f *factory) existingConfig(o *launchFlags, dir string) (string, error) {
	file, err := readAppFile("", dir)
	if root.IsKind(err, root.NotFound) {
		if o.copyConfig {
			return "", hintError{err, "leave --copy-config out: there is nothing to copy"}
		}
		return "", nil
	}
	if err != nil {
		return "", err
	}
	if o.force && !o.copyConfig {
		return "", nil
	}
	if err := file.usable(f, "mend it, or have it written anew with --force"); err != nil {
		return "", err
	}
	name := file.config.App
	if name == "" {
		name = first(o.name, launch.Name(filepath.Base(filepath.Dir(file.path))))
	}
	return name, nil
}

func (f *factory) introduce(plan *launch.Plan, configured bool) {
	f.io.Notef("Found %s", printable(plan.Title))
	if configured {
		f.io.Notef("  fly.toml is there and is used as it is")
		return
	}
	for _, line := range plan.Choices {
		f.io.Notef("  %s", printable(line))
	}
}

// writePlan writes the files, and says which.
func (f *factory) writePlan(o *launchFlags, dir string, plan *launch.Plan, existing string) error {
	for _, file := range plan.Files {
		path := filepath.Join(dir, filepath.FromSlash(file.Name))
		if file.Name == "fly.toml" && existing != "" {
			if err := f.renameApp(o, dir, existing); err != nil {
				return err
			}
			continue
		}
		old, err := os.ReadFile(path)
		switch {
		case err == nil && string(old) == file.Content:
			f.io.Notef("%s is as it would be written", path)
			continue
		case err == nil && !o.force:
			overwrite := false
			if !o.yes {
				if overwrite, err = f.io.Confirm(path + " is there already. Overwrite it?"); err != nil {
					return err
				}
			}
			if !overwrite {
				f.io.Notef("%s stays as it is (--force writes it anew)", path)
				continue
			}
		case err != nil && !errors.Is(err, os.ErrNotExist):
			return err
		}
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := atomicfile.Write(path, []byte(file.Content), 0o644); err != nil {
			return err
		}
		f.io.Printf("%s\n", path)
	}
	return nil
}

var appLine = regexp.MustCompile(`(?m)^app\s*=.*$`)

// renameApp puts another name into the config that is there, if one was asked
// for, and changes nothing else.
func (f *factory) renameApp(o *launchFlags, dir, existing string) error {
	if o.name == "" || o.name == existing {
		return nil
	}
	if !o.copyConfig {
		return usageError{hintError{fmt.Errorf("fly.toml is app %s's, not %s's", existing, o.name), "--copy-config puts the new name into it; --force writes it anew"}}
	}
	file, err := readAppFile("", dir)
	if err != nil {
		return err
	}
	text, err := os.ReadFile(file.path)
	if err != nil {
		return err
	}
	line := []byte("app = " + strconv.Quote(o.name))
	place := appLine.FindIndex(text)
	if place == nil {
		text = append(append(line, '\n'), text...)
	} else {
		text = slices.Concat(text[:place[0]], line, text[place[1]:])
	}
	if err := atomicfile.Write(file.path, text, 0o644); err != nil {
		return err
	}
	f.io.Printf("%s\n", file.path)
	return nil
}

// next says how to go on without deploying.
func (f *factory) next(plan *launch.Plan, dir string) {
	var set, own []string
	for _, s := range plan.Secrets {
		if s.Random {
			set = append(set, s.Name+"=$(openssl rand -hex 32)")
		} else {
			own = append(own, s.Name)
		}
	}
	set = append(set, placeholders(own)...)
	if len(set) > 0 {
		f.io.Notef("Set its secrets:  roost app create %s; roost secrets set --stage -a %s %s", plan.App, plan.App, strings.Join(set, " "))
	}
	command := "roost deploy"
	if dir != "." {
		command += " " + dir
	}
	f.io.Notef("Deploy it:        %s", command)
}

// deployPlan makes the app, gives it those secrets that any random value does
// for, and deploys.
func (f *factory) deployPlan(ctx context.Context, o *launchFlags, plan *launch.Plan, dir string) error {
	c, err := f.client()
	if err != nil {
		return err
	}
	d := deployFlags{org: o.org, yes: true}
	d.build.register(&cobra.Command{}) // the defaults
	if err := f.ensureApp(ctx, c, plan.App, &d); err != nil {
		return err
	}
	if err := f.launchSecrets(ctx, c, plan); err != nil {
		return err
	}
	f.app = plan.App
	return f.deploy(ctx, &d, dir)
}

func (f *factory) launchSecrets(ctx context.Context, c *client.Client, plan *launch.Plan) error {
	if len(plan.Secrets) == 0 {
		return nil
	}
	have, err := c.AppSecrets(ctx, plan.App)
	if err != nil {
		return err
	}
	values := machines.SecretValues{}
	var missing []string
	for _, s := range plan.Secrets {
		switch {
		case slices.ContainsFunc(have.Secrets, func(h client.Secret) bool { return h.Name == s.Name }):
		case s.Random:
			value, err := randomSecret()
			if err != nil {
				return err
			}
			values[s.Name] = &value
		default:
			missing = append(missing, s.Name)
		}
	}
	if len(values) > 0 {
		if _, err := c.SetSecrets(ctx, plan.App, values); err != nil {
			return err
		}
		for name := range values {
			f.io.Notef("Secret %s set to a random value", name)
		}
	}
	if len(missing) > 0 {
		return hintError{
			fmt.Errorf("nothing was deployed: the app needs %s that nobody has set", plural(len(missing), "secret", "secrets")),
			fmt.Sprintf("roost secrets set --stage -a %s %s; then roost deploy", plan.App, strings.Join(placeholders(missing), " ")),
		}
	}
	return nil
}

// placeholders are arguments of `roost secrets set`: one value is read from
// standard input, several are a person's to write.
func placeholders(names []string) []string {
	value := "=-"
	if len(names) > 1 {
		value = "=..."
	}
	args := make([]string, len(names))
	for i, name := range names {
		args[i] = name + value
	}
	return args
}

func randomSecret() (string, error) {
	var b [32]byte
	if _, err := rand.Read(b[:]); err != nil {
		return "", err
	}
	return hex.EncodeToString(b[:]), nil
}
