package cli

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/roost-run/roost/internal/client"
)

func newReleaseCmd(f *factory) *cobra.Command {
	list := newReleaseListCmd(f)
	cmd := &cobra.Command{
		Use: "releases", Aliases: []string{"release"}, Short: "Versions of an app: list, show, watch, cancel",
		Long: "Versions of an app. Without a verb, `roost releases` lists them.",
		Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return list.RunE(cmd, args)
			}
			return runGroup(cmd, args)
		},
	}
	cmd.Flags().AddFlagSet(list.Flags())
	cmd.AddCommand(list, newReleaseShowCmd(f), newReleaseWatchCmd(f), newReleaseCancelCmd(f))
	return cmd
}

func newReleaseListCmd(f *factory) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List an app's releases, the newest first", Args: cobra.NoArgs,
		Example: "  roost releases\n  roost releases list --app shop --json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			app, c, err := f.target()
			if err != nil {
				return err
			}
			releases, err := c.Releases(cmd.Context(), app)
			if err != nil {
				return err
			}
			return printList(f, asJSON, releases, "No releases yet; `roost deploy` makes one",
				[]string{"version", "status", "description", "by", "image", "when"}, f.releaseRow)
		},
	}
	return f.onApp(jsonFlag(cmd, &asJSON))
}

func (f *factory) releaseRow(r client.Release) []string {
	status := r.Status
	if r.Current {
		status += " (serves)"
	}
	image, _, _ := strings.Cut(r.Image, "@")
	if !f.io.OutTTY {
		image = r.Image
	}
	return []string{"v" + strconv.Itoa(r.Version), status, first(r.Description, r.Reason), r.Author, image, f.io.Time(r.CreatedAt)}
}

func newReleaseShowCmd(f *factory) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use: "show [VERSION]", Aliases: []string{"status"}, Short: "Show a release and what happened in its rollout", Args: cobra.MaximumNArgs(1),
		Long:    "Show a release and what happened in its rollout. Without VERSION it is the one\nthat serves.",
		Example: "  roost releases show v7 --app shop",
		RunE: func(cmd *cobra.Command, args []string) error {
			app, c, version, err := f.onRelease(args)
			if err != nil {
				return err
			}
			r, err := c.Release(cmd.Context(), app, version)
			if err != nil {
				return err
			}
			events, err := c.ReleaseEvents(cmd.Context(), app, r.Version)
			if err != nil {
				return err
			}
			if asJSON {
				return f.io.JSON(struct {
					client.Release
					Events []client.ReleaseEvent `json:"events"`
				}{r, events})
			}
			rows := [][]string{
				{"version", "v" + strconv.Itoa(r.Version)}, {"status", f.releaseRow(r)[1]}, {"image", r.Image}, {"strategy", r.Strategy},
				{"process groups", strings.Join(r.Groups, ", ")}, {"reason", r.Reason}, {"description", r.Description}, {"by", r.Author}, {"created", f.io.Time(r.CreatedAt)},
			}
			if !r.FinishedAt.IsZero() && !r.StartedAt.IsZero() {
				rows = append(rows, []string{"took", short(r.FinishedAt.Sub(r.StartedAt))})
			}
			if why := r.Message; why != "" {
				if f.io.OutTTY { // the events below have all of it
					why, _, _ = strings.Cut(why, "\n")
				}
				rows = append(rows, []string{"why", why})
			}
			if err := f.io.Table([]string{"release", app}, rows); err != nil {
				return err
			}
			if len(events) > 0 {
				f.io.Printf("\n")
			}
			for _, e := range events {
				if line := eventLine(e); line != "" {
					at := e.At.Local().Format("15:04:05")
					if !f.io.OutTTY {
						at = f.io.Time(e.At)
					}
					f.io.Printf("%s  %s\n", at, line)
				}
			}
			return nil
		},
	}
	return f.onApp(jsonFlag(cmd, &asJSON))
}

// onRelease reads what commands about one release need; version 0 is the one
// that serves.
func (f *factory) onRelease(args []string) (app string, c *client.Client, version int, err error) {
	if app, err = f.appName(); err != nil {
		return "", nil, 0, err
	}
	if len(args) == 1 {
		if version, err = parseVersion(args[0]); err != nil {
			return "", nil, 0, usageError{err}
		}
	}
	c, err = f.client()
	return app, c, version, err
}

// parseVersion reads "v7" or "7".
func parseVersion(s string) (int, error) {
	n, err := strconv.Atoi(strings.TrimPrefix(s, "v"))
	if err != nil || n < 1 {
		return 0, fmt.Errorf("%q is not a release such as v7: `roost releases` lists them", s)
	}
	return n, nil
}

func newReleaseWatchCmd(f *factory) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use: "watch [VERSION]", Short: "Follow a rollout until it ends", Args: cobra.MaximumNArgs(1),
		Long:    "Follow a rollout until it ends; the exit code says how. Without VERSION it is the\nnewest one.",
		Example: "  roost releases watch --app shop",
		RunE: func(cmd *cobra.Command, args []string) error {
			app, c, version, err := f.onRelease(args)
			if err != nil {
				return err
			}
			if version == 0 {
				all, err := c.Releases(cmd.Context(), app)
				if err != nil {
					return err
				}
				if len(all) == 0 {
					return fmt.Errorf("app %s has no releases", app)
				}
				version = all[0].Version
			}
			r, err := c.Release(cmd.Context(), app, version)
			if err != nil {
				return err
			}
			return f.seeThrough(cmd.Context(), c, app, r, asJSON)
		},
	}
	return f.onApp(jsonFlag(cmd, &asJSON))
}

func newReleaseCancelCmd(f *factory) *cobra.Command {
	cmd := &cobra.Command{
		Use: "cancel [VERSION]", Short: "End a rollout under way; the machines go back to the release before", Args: cobra.MaximumNArgs(1),
		Long: `End a rollout under way; the machines go back to the release before. A release
that serves already cannot be cancelled, also while its rollout still cleans up:
roost rollback goes back to the one before.`,
		Example: "  roost releases cancel --app shop",
		RunE: func(cmd *cobra.Command, args []string) error {
			app, c, version, err := f.onRelease(args)
			if err != nil {
				return err
			}
			if version == 0 {
				all, err := c.Releases(cmd.Context(), app)
				if err != nil {
					return err
				}
				if len(all) == 0 || all[0].Final() {
					return fmt.Errorf("no rollout of %s is under way", app)
				}
				version = all[0].Version
			}
			if err := c.CancelRelease(cmd.Context(), app, version); err != nil {
				return err
			}
			f.io.Notef("Release v%d is being cancelled; `roost releases watch v%d --app %s` follows", version, version, app)
			return nil
		},
	}
	return f.onApp(cmd)
}

func newRollbackCmd(f *factory) *cobra.Command {
	var in client.Rollback
	var detach, yes, asJSON bool
	cmd := &cobra.Command{
		Use: "rollback [VERSION]", Short: "Go back to a former release: its image, config and secrets", Args: cobra.MaximumNArgs(1),
		Long: `Go back to a former release: its image, config and secrets, as a release of its
own. Without VERSION it is the newest complete one that is older than what serves;
after a rollback that is further back, not forth again. No command is run again:
what a release command changed stays, and is named.`,
		Example: "  roost rollback --app shop\n  roost rollback v7 --app shop --yes\n  roost rollback --dry-run",
		RunE: func(cmd *cobra.Command, args []string) error {
			app, c, version, err := f.onRelease(args)
			if err != nil {
				return err
			}
			if in.DryRun || !yes && f.io.InTTY && f.io.ErrTTY {
				look := in
				look.DryRun = true
				r, err := c.RollBack(cmd.Context(), app, version, look)
				if err != nil {
					return f.unreleased(app, err)
				}
				if asJSON && in.DryRun {
					return f.io.JSON(r)
				}
				f.noteRollback(r)
				if in.DryRun {
					f.io.Printf("%s would go back to v%d: %s\n", app, r.BackTo, r.Image)
					return nil
				}
				ok, err := f.io.Confirm(fmt.Sprintf("Take %s back to v%d?", app, r.BackTo))
				if err != nil {
					return err
				}
				if !ok {
					return errors.New("nothing was changed")
				}
				version = r.BackTo // what was agreed to
			}
			r, err := c.RollBack(cmd.Context(), app, version, in)
			if err != nil {
				return f.unreleased(app, err)
			}
			if detach {
				if r.Why != "" {
					f.io.Notef("%s", r.Why)
				}
				return f.leave(app, r, asJSON)
			}
			return f.seeThrough(cmd.Context(), c, app, r, asJSON)
		},
	}
	fl := cmd.Flags()
	fl.BoolVar(&in.DryRun, "dry-run", false, "only say where it would go, and what would not go back with it")
	fl.StringVar(&in.Description, "description", "", "what the list of releases says of it")
	fl.StringVar(&in.Strategy, "strategy", "", "rolling, bluegreen or immediate (default: the former release's)")
	fl.BoolVar(&in.CurrentSecrets, "current-secrets", false, "run it with the app's secrets of now, not with those it ran with")
	fl.BoolVar(&detach, "detach", false, "do not wait for its end")
	fl.BoolVarP(&yes, "yes", "y", false, "do not ask")
	return f.onApp(jsonFlag(cmd, &asJSON))
}

// noteRollback says where a rollback would go.
func (f *factory) noteRollback(r client.Release) {
	if r.Why != "" {
		f.io.Notef("%s", r.Why)
	}
	for _, w := range r.Warnings {
		f.io.Notef("Warning: %s", w)
	}
}

// leave prints a release that nobody waits for.
func (f *factory) leave(app string, r client.Release, asJSON bool) error {
	for _, w := range r.Warnings {
		f.io.Notef("Warning: %s", w)
	}
	if asJSON {
		return f.io.JSON(r)
	}
	f.io.Notef("Release v%d of %s is rolled out by the platform; `roost releases watch v%d --app %s` follows it", r.Version, app, r.Version, app)
	return nil
}

// unreleased adds the next step to an error of making a release.
func (f *factory) unreleased(app string, err error) error {
	switch codeOf(err) {
	case "release_in_progress":
		return hintError{err, "`roost deploy --queue` waits for its end"}
	case "no_release":
		return hintError{err, "`roost deploy --app " + app + "` makes one"}
	}
	return err
}
