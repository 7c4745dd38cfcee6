package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/client"
	"github.com/roost-run/roost/machines"
)

func newSecretsCmd(f *factory) *cobra.Command {
	cmd := group("secrets", "Set an app's secrets, which its machines find in their environment", []string{"secret"},
		newSecretsSetCmd(f), newSecretsImportCmd(f), newSecretsListCmd(f), newSecretsUnsetCmd(f), newSecretsDeployCmd(f))
	cmd.Long = `Set an app's secrets. They are sealed at rest, nobody can read them back, and they
are masked in logs. A machine gets the secrets that were current when its version
was made; setting some makes a release that brings them to all machines of the
app, without a lost request. With --stage they wait for the next release, or for
` + "`roost secrets deploy`" + `.

What is on a command line is seen by everybody on the host who lists processes,
and kept by the shell's history. NAME=- reads the value from standard input, and
` + "`roost secrets import`" + ` reads all of them from there.`
	return cmd
}

// secretChange is what all commands do that change secrets.
type secretChange struct {
	stage, detach bool
	asJSON        bool
}

func (o *secretChange) register(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&o.stage, "stage", false, "only store them: the next release brings them to the machines")
	cmd.Flags().BoolVarP(&o.detach, "detach", "d", false, "do not wait until the machines have them")
	jsonFlag(cmd, &o.asJSON)
}

func newSecretsSetCmd(f *factory) *cobra.Command {
	var o secretChange
	cmd := &cobra.Command{
		Use: "set NAME=VALUE...", Short: "Set secrets", Args: cobra.MinimumNArgs(1),
		Example: "  openssl rand -hex 32 | roost secrets set --app shop SECRET_KEY=-\n" +
			"  roost secrets set --app shop --stage DATABASE_URL=- < url.txt",
		RunE: func(cmd *cobra.Command, args []string) error {
			values, err := secretArgs(args, f.io.In)
			if err != nil {
				return err
			}
			return f.changeSecrets(cmd.Context(), values, o)
		},
	}
	o.register(cmd)
	return f.onApp(cmd)
}

// secretArgs reads NAME=VALUE; of one of them the value may be "-", standard
// input. Errors do not show values.
func secretArgs(args []string, in io.Reader) (machines.SecretValues, error) {
	values := machines.SecretValues{}
	read := ""
	for n, arg := range args {
		name, value, ok := strings.Cut(arg, "=")
		if !ok {
			return nil, usageError{fmt.Errorf("argument %d is not NAME=VALUE", n+1)}
		}
		if value == "-" {
			if read != "" {
				return nil, usageError{fmt.Errorf("%s and %s cannot both be read from standard input: use `roost secrets import`", read, name)}
			}
			read = name
			data, err := io.ReadAll(io.LimitReader(in, int64(root.MaxSecretValue)+2))
			if err != nil {
				return nil, fmt.Errorf("read %s from standard input: %w", name, err)
			}
			// A program's output ends with a line's end that is not part of the value.
			value = strings.TrimSuffix(strings.TrimSuffix(string(data), "\n"), "\r")
			if value == "" {
				return nil, usageError{fmt.Errorf("%s: standard input is empty", name)}
			}
		}
		if _, twice := values[name]; twice {
			return nil, usageError{fmt.Errorf("%s is set twice", name)}
		}
		if err := root.ValidateSecret(name, value); err != nil {
			return nil, usageError{err}
		}
		values[name] = &value
	}
	return values, nil
}

func newSecretsImportCmd(f *factory) *cobra.Command {
	var o secretChange
	cmd := &cobra.Command{
		Use: "import", Short: "Set the secrets that standard input has, a NAME=VALUE on each line", Args: cobra.NoArgs,
		Long: `Set the secrets that standard input has, one on each line: NAME=VALUE. A value may
stand in single or double quotes, and between lines of """ it may have several
lines. Empty lines and those that begin with # are passed over.`,
		Example: "  roost secrets import --app shop < .env",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if f.io.InTTY {
				f.io.Notef("Reading NAME=VALUE lines from the terminal; ctrl-d ends them")
			}
			values, err := parseSecrets(f.io.In)
			if err != nil {
				return err
			}
			if len(values) == 0 {
				return usageError{errors.New("standard input has no NAME=VALUE line")}
			}
			return f.changeSecrets(cmd.Context(), values, o)
		},
	}
	o.register(cmd)
	return f.onApp(cmd)
}

// parseSecrets reads lines of NAME=VALUE. Errors name the line, never a value.
func parseSecrets(in io.Reader) (machines.SecretValues, error) {
	values := machines.SecretValues{}
	lines := bufio.NewScanner(in)
	lines.Buffer(nil, 2*int(root.MaxSecretValue))
	const fence = `"""`
	for n := 1; lines.Scan(); n++ {
		line := strings.TrimSpace(lines.Text())
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		begin := n
		name, value, ok := strings.Cut(strings.TrimPrefix(line, "export "), "=")
		name, value = strings.TrimSpace(name), strings.TrimSpace(value)
		if !ok {
			return nil, usageError{fmt.Errorf("line %d is not NAME=VALUE", n)}
		}
		if rest, several := strings.CutPrefix(value, fence); several {
			var text []string
			if rest != "" {
				text = append(text, rest)
			}
			closed := false
			for !closed && lines.Scan() {
				n++
				var part string
				if part, closed = strings.CutSuffix(lines.Text(), fence); !closed || part != "" {
					text = append(text, part)
				}
			}
			if !closed {
				return nil, usageError{fmt.Errorf("line %d: the value of %s has no closing %s", begin, name, fence)}
			}
			value = strings.Join(text, "\n")
		} else {
			value = unquote(value)
		}
		if err := root.ValidateSecret(name, value); err != nil {
			return nil, usageError{fmt.Errorf("line %d: %w", begin, err)}
		}
		values[name] = &value
	}
	if errors.Is(lines.Err(), bufio.ErrTooLong) {
		return nil, usageError{fmt.Errorf("a line is longer than a secret may be (%s)", root.MaxSecretValue)}
	}
	return values, lines.Err()
}

func unquote(value string) string {
	if n := len(value); n >= 2 && (value[0] == '"' || value[0] == '\'') && value[n-1] == value[0] {
		return value[1 : n-1]
	}
	return value
}

func newSecretsUnsetCmd(f *factory) *cobra.Command {
	var o secretChange
	cmd := &cobra.Command{
		Use: "unset NAME...", Aliases: []string{"rm", "remove"}, Short: "Remove secrets", Args: cobra.MinimumNArgs(1),
		Example: "  roost secrets unset --app shop OLD_KEY",
		RunE: func(cmd *cobra.Command, args []string) error {
			values := machines.SecretValues{}
			for _, name := range args {
				if strings.Contains(name, "=") {
					return usageError{errors.New("unset takes names only")}
				}
				values[name] = nil
			}
			return f.changeSecrets(cmd.Context(), values, o)
		},
	}
	o.register(cmd)
	return f.onApp(cmd)
}

// changeSecrets stores the change and, unless it is only staged, brings it to
// the machines.
func (f *factory) changeSecrets(ctx context.Context, values machines.SecretValues, o secretChange) error {
	app, c, err := f.target()
	if err != nil {
		return err
	}
	before, err := c.AppSecrets(ctx, app)
	if err != nil {
		return err
	}
	if _, err := c.SetSecrets(ctx, app, values); err != nil {
		return err
	}
	after, err := c.AppSecrets(ctx, app)
	if err != nil {
		return err
	}
	if o.asJSON {
		if err := f.io.JSON(after); err != nil {
			return err
		}
	} else {
		f.printChange(values, before, after)
	}
	if o.stage {
		f.io.Notef("Staged: `roost secrets deploy --app %s` or the next release brings them to the machines", app)
		return nil
	}
	if after.Version == before.Version && !slices.ContainsFunc(after.Secrets, func(s client.Secret) bool { return s.Staged }) {
		f.io.Notef("Nothing changed: the machines run with these secrets already")
		return nil
	}
	return f.deploySecrets(ctx, c, app, secretsDescription(values), o.detach)
}

// secretsDescription is what the list of releases shows: names, no values.
func secretsDescription(values machines.SecretValues) string {
	var set, unset []string
	for _, name := range slices.Sorted(maps.Keys(values)) {
		if values[name] == nil {
			unset = append(unset, name)
		} else {
			set = append(set, name)
		}
	}
	var parts []string
	if len(set) > 0 {
		parts = append(parts, "set "+strings.Join(set, ", "))
	}
	if len(unset) > 0 {
		parts = append(parts, "unset "+strings.Join(unset, ", "))
	}
	return "secrets: " + strings.Join(parts, "; ")
}

func (f *factory) printChange(values machines.SecretValues, before, after client.Secrets) {
	digests := func(s client.Secrets) map[string]string {
		out := map[string]string{}
		for _, x := range s.Secrets {
			out[x.Name] = x.Digest
		}
		return out
	}
	was, is := digests(before), digests(after)
	for _, name := range slices.Sorted(maps.Keys(values)) {
		switch {
		case values[name] == nil && was[name] == "":
			f.io.Notef("%s was not set", name)
		case values[name] == nil:
			f.io.Notef("%s removed", name)
		case was[name] == is[name]:
			f.io.Notef("%s has that value already (digest %s)", name, is[name])
		case was[name] == "":
			f.io.Notef("%s set (digest %s)", name, is[name])
		default:
			f.io.Notef("%s changed (digest %s, was %s)", name, is[name], was[name])
		}
	}
}

func newSecretsDeployCmd(f *factory) *cobra.Command {
	var detach bool
	cmd := &cobra.Command{
		Use: "deploy", Short: "Bring staged secrets to the machines", Args: cobra.NoArgs,
		Example: "  roost secrets deploy --app shop",
		RunE: func(cmd *cobra.Command, _ []string) error {
			app, c, err := f.target()
			if err != nil {
				return err
			}
			return f.deploySecrets(cmd.Context(), c, app, "", detach)
		},
	}
	cmd.Flags().BoolVarP(&detach, "detach", "d", false, "do not wait until the machines have them")
	return f.onApp(cmd)
}

func (f *factory) deploySecrets(ctx context.Context, c *client.Client, app, description string, detach bool) error {
	release, err := c.DeploySecrets(ctx, app, description)
	if apiErr, ok := errors.AsType[*machines.Error](err); ok && apiErr.Status == http.StatusPreconditionFailed && apiErr.Code == "no_release" {
		list, err := c.List(ctx, app, machines.ListOptions{})
		if err != nil {
			return err
		}
		if len(list) == 0 {
			f.io.Notef("The app has no machines yet: they get the secrets when they are made")
			return nil
		}
		f.io.Notef("The app has no release: its %s made by API get the secrets when they are updated (`roost machine update --app %s ID`)", plural(len(list), "machine", "machines"), app)
		return nil
	}
	if codeOf(err) == "release_in_progress" {
		return hintError{err, "the secrets are stored: `roost secrets deploy --app " + app + "` brings them to the machines when that release has ended"}
	}
	if err != nil {
		return err
	}
	// Where the app answers is no answer to this command.
	out := f.io.Out
	f.io.Out = io.Discard
	defer func() { f.io.Out = out }()
	if detach {
		return f.leave(app, release, false)
	}
	return f.seeThrough(ctx, c, app, release, false)
}

func newSecretsListCmd(f *factory) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List secrets: names, digests, times; never values", Args: cobra.NoArgs,
		Example: "  roost secrets list --app shop",
		RunE: func(cmd *cobra.Command, _ []string) error {
			app, c, err := f.target()
			if err != nil {
				return err
			}
			list, err := c.AppSecrets(cmd.Context(), app)
			if err != nil {
				return err
			}
			if asJSON {
				return f.io.JSON(list)
			}
			rows := make([][]string, 0, len(list.Secrets))
			for _, s := range list.Secrets {
				status := "deployed"
				if s.Staged {
					status = "staged"
				}
				rows = append(rows, []string{s.Name, s.Digest, status, f.io.Time(s.UpdatedAt)})
			}
			return f.table("No secrets; `roost secrets set` sets some", []string{"name", "digest", "status", "updated"}, rows)
		},
	}
	return f.onApp(jsonFlag(cmd, &asJSON))
}
