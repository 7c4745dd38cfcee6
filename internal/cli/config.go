package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/appconfig"
	"github.com/roost-run/roost/internal/atomicfile"
	"github.com/roost-run/roost/internal/client"
	"github.com/roost-run/roost/machines"
)

func newConfigCmd(f *factory) *cobra.Command {
	return group("config", "An app's config: validate, show, save, env, plan", nil,
		newConfigValidateCmd(f), newConfigShowCmd(f), newConfigSaveCmd(f), newConfigEnvCmd(f), newConfigPlanCmd(f))
}

// configFlag adds --config.
func configFlag(cmd *cobra.Command, path *string) *cobra.Command {
	cmd.Flags().StringVarP(path, "config", "c", "", "the app's config (default: fly.toml in this directory)")
	return cmd
}

// problemDoc is a problem of a file as JSON.
type problemDoc struct {
	Line     int    `json:"line,omitempty"`
	Column   int    `json:"column,omitempty"`
	Path     string `json:"path,omitempty"`
	Severity string `json:"severity"` // "error" or "warning"
	Message  string `json:"message"`
	Hint     string `json:"hint,omitempty"`
}

func newConfigValidateCmd(f *factory) *cobra.Command {
	var path string
	var strict, asJSON bool
	cmd := &cobra.Command{
		Use: "validate [FILE]", Short: "Say what is wrong with a fly.toml, all of it", Args: cobra.MaximumNArgs(1),
		Long: `Say what is wrong with a fly.toml, all of it, with line and column. Nothing is
asked of the platform. Keys that nothing reads are errors here, --strict=false
makes them warnings, as they are for a deploy.`,
		Example: "  roost config validate\n  roost config validate ./shop/fly.toml --json",
		RunE: func(_ *cobra.Command, args []string) error {
			if len(args) == 1 {
				path = args[0]
			}
			file, err := readAppFile(path, ".")
			if err != nil {
				return noFile(err)
			}
			problems := file.problems
			if strict {
				problems = problems.Strict()
			}
			bad := problems.Errors()
			if asJSON {
				doc := struct {
					File     string       `json:"file"`
					App      string       `json:"app,omitempty"`
					Valid    bool         `json:"valid"`
					Problems []problemDoc `json:"problems"`
				}{file.name(), "", len(bad) == 0, []problemDoc{}}
				if file.config != nil {
					doc.App = file.config.App
				}
				for _, p := range problems {
					d := problemDoc{p.Line, p.Column, p.Path, "error", p.Message, p.Hint}
					if p.Warning {
						d.Severity = "warning"
					}
					doc.Problems = append(doc.Problems, d)
				}
				if err := f.io.JSON(doc); err != nil {
					return err
				}
			} else {
				file.print(func(format string, args ...any) { f.io.Printf(format+"\n", args...) }, problems)
			}
			if len(bad) > 0 {
				return fmt.Errorf("%s has %s", file.name(), plural(len(bad), "error", "errors"))
			}
			f.io.Notef("%s is valid", file.name())
			return nil
		},
	}
	cmd.Flags().BoolVar(&strict, "strict", true, "keys that nothing reads are errors")
	return configFlag(jsonFlag(cmd, &asJSON), &path)
}

// noFile adds the next step where there is no config.
func noFile(err error) error {
	if root.IsKind(err, root.NotFound) {
		return hintError{err, "`roost launch` writes one, `roost config save` saves that of an app; --config names another file"}
	}
	return err
}

// released returns the config of the release that serves.
func (f *factory) released(ctx context.Context, c *client.Client, app string) (*appconfig.Config, error) {
	r, err := c.Release(ctx, app, 0)
	if err != nil {
		return nil, f.unreleased(app, err)
	}
	return appconfig.Decode(r.Definition)
}

func newConfigShowCmd(f *factory) *cobra.Command {
	var path string
	var local, asTOML, asJSON bool
	cmd := &cobra.Command{
		Use: "show", Short: "Print the config of the release that serves, or of the file, as JSON or TOML", Args: cobra.NoArgs,
		Example: "  roost config show --app shop\n  roost config show --local --toml",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if asTOML && asJSON {
				return usageError{errors.New("--toml and --json: choose one")}
			}
			config, err := f.someConfig(cmd.Context(), path, local)
			if err != nil {
				return err
			}
			if asTOML {
				text, err := config.TOML()
				if err != nil {
					return err
				}
				f.io.Printf("%s", text)
				return nil
			}
			definition, err := config.JSON()
			if err != nil {
				return err
			}
			return f.io.JSON(json.RawMessage(definition))
		},
	}
	cmd.Flags().BoolVar(&local, "local", false, "of the file, not of the release")
	cmd.Flags().BoolVar(&asTOML, "toml", false, "print TOML")
	return f.onApp(configFlag(jsonFlag(cmd, &asJSON), &path))
}

// someConfig is the file's config or that of the release that serves.
func (f *factory) someConfig(ctx context.Context, path string, local bool) (*appconfig.Config, error) {
	if local || path != "" {
		file, err := readAppFile(path, ".")
		if err != nil {
			return nil, noFile(err)
		}
		return file.config, file.usable(f, "mend it first")
	}
	app, c, err := f.target()
	if err != nil {
		return nil, err
	}
	return f.released(ctx, c, app)
}

func newConfigSaveCmd(f *factory) *cobra.Command {
	var path string
	var yes bool
	cmd := &cobra.Command{
		Use: "save", Short: "Write the config of the release that serves to fly.toml", Args: cobra.NoArgs,
		Long: `Write the config of the release that serves to fly.toml, or to the file that
--config names: .json is written as JSON. A file that is there already is replaced
only when you say so. Comments are not part of a release.`,
		Example: "  roost config save --app shop",
		RunE: func(cmd *cobra.Command, _ []string) error {
			to := first(path, appconfig.Names[0])
			app, c, err := f.target()
			if err != nil {
				return err
			}
			config, err := f.released(cmd.Context(), c, app)
			if err != nil {
				return err
			}
			config.App = app
			text, err := config.TOML()
			switch filepath.Ext(to) {
			case ".json":
				if text, err = config.JSON(); err == nil {
					var b bytes.Buffer
					err = json.Indent(&b, text, "", "  ")
					text = append(b.Bytes(), '\n')
				}
			case ".yaml", ".yml":
				return usageError{errors.New("the config is written as TOML or JSON: name such a file")}
			}
			if err != nil {
				return err
			}
			if old, err := os.ReadFile(to); err == nil && !bytes.Equal(old, text) {
				if err := f.replace(yes, to); err != nil {
					return err
				}
			} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
			const mode = 0o644
			if err := atomicfile.Write(to, text, mode); err != nil {
				return err
			}
			f.io.Notef("The config of %s is in %s", app, to)
			return nil
		},
	}
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "replace a file that is there")
	return f.onApp(configFlag(cmd, &path))
}

// replace asks before a file is written over.
func (f *factory) replace(yes bool, path string) error {
	switch {
	case yes:
		return nil
	case !f.io.InTTY || !f.io.ErrTTY:
		return usageError{hintError{fmt.Errorf("%s is there already, and another one", path), "replace it with --yes, or name another file with --config"}}
	}
	ok, err := f.io.Confirm("Replace " + path + "?")
	if err != nil {
		return err
	}
	if !ok {
		return errors.New("nothing was written")
	}
	return nil
}

func newConfigEnvCmd(f *factory) *cobra.Command {
	var path string
	var local, asJSON bool
	cmd := &cobra.Command{
		Use: "env", Short: "Show the environment of an app's machines: variables, and names of secrets", Args: cobra.NoArgs,
		Example: "  roost config env --app shop",
		RunE: func(cmd *cobra.Command, _ []string) error {
			config, err := f.someConfig(cmd.Context(), path, local)
			if err != nil {
				return err
			}
			type variable struct {
				Name   string `json:"name"`
				Value  string `json:"value,omitempty"`
				Secret bool   `json:"secret,omitempty"`
				Digest string `json:"digest,omitempty"`
			}
			all := map[string]variable{}
			for name, value := range config.Env {
				all[name] = variable{Name: name, Value: value}
			}
			if config.PrimaryRegion != "" {
				all["PRIMARY_REGION"] = variable{Name: "PRIMARY_REGION", Value: config.PrimaryRegion}
			}
			if !local && path == "" {
				app, c, err := f.target()
				if err != nil {
					return err
				}
				secrets, err := c.AppSecrets(cmd.Context(), app)
				if err != nil {
					return err
				}
				for _, s := range secrets.Secrets { // a secret wins over a variable of its name
					all[s.Name] = variable{Name: s.Name, Secret: true, Digest: s.Digest}
				}
			}
			list := make([]variable, 0, len(all))
			rows := make([][]string, 0, len(all))
			for _, name := range slices.Sorted(maps.Keys(all)) {
				v := all[name]
				list = append(list, v)
				kind, value := "variable", v.Value
				if v.Secret {
					kind, value = "secret", v.Digest
				}
				rows = append(rows, []string{name, kind, value})
			}
			if asJSON {
				return f.io.JSON(list)
			}
			if len(rows) == 0 {
				return f.table("No environment; [env] of fly.toml and `roost secrets set` make one", nil, nil)
			}
			return f.io.Table([]string{"name", "kind", "value or digest"}, rows)
		},
	}
	cmd.Flags().BoolVar(&local, "local", false, "of the file, not of the release")
	return f.onApp(configFlag(jsonFlag(cmd, &asJSON), &path))
}

func newConfigPlanCmd(f *factory) *cobra.Command {
	var o deployFlags
	cmd := &cobra.Command{
		Use: "plan", Short: "Say what a deploy of the file would change, and change nothing", Args: cobra.NoArgs,
		Long: `Say what a deploy of the file would change, machine by machine, and change nothing.
Nothing is built: the image is that of the release that serves unless --image or
build.image names one.`,
		Example: "  roost config plan\n  roost config plan --app shop --image registry.localhost/shop:v3 --json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			config, app, err := f.readDeploy(&o, ".")
			if err != nil {
				return err
			}
			c, err := f.client()
			if err != nil {
				return err
			}
			in := o.release
			in.Image = o.image
			if config != nil {
				if config.Build != nil {
					in.Image = first(o.image, config.Build.Image)
				}
				if in.Definition, err = config.JSON(); err != nil {
					return err
				}
			}
			plan, err := c.PlanRelease(cmd.Context(), app, in)
			if machines.StatusOf(err) == http.StatusNotFound {
				return hintError{err, "`roost deploy` makes it"}
			}
			if err != nil {
				return f.unreleased(app, err)
			}
			if o.asJSON {
				return f.io.JSON(plan)
			}
			f.printPlan(app, plan)
			if in.Image == "" {
				f.io.Notef("With the image of v%d: a plan builds nothing", plan.Release)
			}
			return nil
		},
	}
	fl := cmd.Flags()
	fl.StringVarP(&o.image, "image", "i", "", "the image that would be deployed")
	fl.StringArrayVarP(&o.env, "env", "e", nil, "environment variable `NAME=VALUE`, beside those of the file (repeatable)")
	fl.StringVar(&o.region, "primary-region", "", "region of new machines (default: the file's)")
	fl.StringVar(&o.release.Strategy, "strategy", "", "rolling, bluegreen, canary or immediate")
	fl.StringSliceVar(&o.release.Regions, "regions", nil, "only machines in these regions")
	fl.StringSliceVar(&o.release.Groups, "process-groups", nil, "only these process groups")
	fl.BoolVar(&o.release.UpdateOnly, "update-only", false, "make no new machines")
	return f.onApp(configFlag(jsonFlag(cmd, &o.asJSON), &o.config))
}

// printPlan prints a plan for people; a pipe gets the same lines.
func (f *factory) printPlan(app string, p client.ReleasePlan) {
	if p.Release == 0 {
		f.io.Printf("First release of %s, strategy %s\n", app, p.Strategy)
	} else {
		f.io.Printf("A deploy of %s, which serves v%d, strategy %s\n", app, p.Release, p.Strategy)
	}
	if line := difference("image", p.Image); line != "" {
		f.io.Printf("  %s\n", line)
	}
	if len(p.Command) > 0 {
		f.io.Printf("  runs the release command: %s\n", printable(strings.Join(p.Command, " ")))
	}
	changes := false
	for _, g := range p.Groups {
		f.io.Printf("%s: %s\n", g.Name, first(g.Change, "no change"))
		for _, d := range g.Config {
			changes = true
			f.io.Printf("  %s\n", difference(d.Path, d))
		}
		for _, m := range g.Machines {
			changes = changes || m.Action != "keep"
			f.io.Printf("  %s\n", planLine(m))
		}
	}
	for i, m := range p.Foreign {
		if i == 0 {
			f.io.Printf("Machines that deploys leave alone:\n")
		}
		f.io.Printf("  %s %s\n", m.ID, strings.Join(slices.DeleteFunc([]string{m.Name, m.State, m.Image, m.Why}, func(s string) bool { return s == "" }), ", "))
	}
	for _, w := range p.Warnings {
		f.io.Notef("Warning: %s", w)
	}
	if !changes && len(p.Groups) > 0 {
		f.io.Notef("No machine would change")
	}
}

func planLine(m client.PlanMachine) string {
	line := m.Action
	if m.ID != "" {
		line += " " + m.ID
	} else {
		line += " a machine"
	}
	if m.Region != "" {
		line += " in " + m.Region
	}
	if m.State != "" {
		line += " (" + m.State + ")"
	}
	if m.Why != "" {
		line += ": " + m.Why
	}
	return line
}

// difference prints what changes: "env.A: "1" -> "2"", with + and - for what
// comes and goes; "" nothing.
func difference(path string, d client.Difference) string {
	from, to := printable(string(d.From)), printable(string(d.To))
	switch {
	case from == to:
		return ""
	case from == "":
		return "+ " + path + ": " + to
	case to == "":
		return "- " + path + ": " + from
	}
	return "~ " + path + ": " + from + " -> " + to
}
