package cli

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/roost-run/roost/internal/client"
	"github.com/roost-run/roost/machines"
)

func newStatusCmd(f *factory) *cobra.Command {
	var asJSON, hosts bool
	cmd := &cobra.Command{
		Use: "status", Short: "Show an app and its machines; where no app is named, the hosts", Args: cobra.NoArgs,
		Long:    "Show an app and its machines: that of --app, else that of the fly.toml in this\ndirectory. Where there is neither, or with --hosts: the hosts.",
		Example: "  roost status\n  roost status --app shop\n  roost status --hosts",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if hosts || f.namedApp() == "" && appOf(".") == "" {
				return f.hostStatus(cmd, asJSON)
			}
			name, c, err := f.target()
			if err != nil {
				return err
			}
			app, err := c.App(cmd.Context(), name)
			if err != nil {
				return err
			}
			list, err := c.List(cmd.Context(), name, machines.ListOptions{})
			if err != nil {
				return err
			}
			now, err := servingRelease(cmd.Context(), c, name)
			if err != nil {
				return err
			}
			if asJSON {
				return f.io.JSON(map[string]any{"app": app, "machines": list, "release": now.serves, "newest_release": now.newest, "url": now.url})
			}
			if f.io.OutTTY {
				f.io.Printf("%s (%s): %s, %s\n", app.Name, app.Organization.Slug, app.Status, plural(len(list), "machine", "machines"))
				f.printServing(name, now)
				f.io.Printf("\n")
			}
			if len(list) == 0 && f.io.OutTTY {
				f.io.Notef("No machines; `roost deploy` makes them from a folder with source, `roost machine run --app %s IMAGE` one from an image", name)
				return nil
			}
			return f.printMachines(list, false)
		},
	}
	cmd.Flags().BoolVar(&hosts, "hosts", false, "show the hosts, also in the folder of an app")
	return f.onApp(jsonFlag(cmd, &asJSON))
}

// standing is what an app's releases say of it.
type standing struct {
	serves *client.Release // nil: none
	newest *client.Release // nil: none; it may not be the one that serves
	url    string          // where the one that serves answered last, "" nowhere
}

func servingRelease(ctx context.Context, c *client.Client, app string) (standing, error) {
	var s standing
	releases, err := c.Releases(ctx, app)
	if err != nil {
		return s, err
	}
	for i := range releases {
		r := &releases[i]
		if s.newest == nil || r.Version > s.newest.Version {
			s.newest = r
		}
		if r.Current {
			s.serves = r
		}
	}
	if s.serves == nil {
		return s, nil
	}
	events, err := c.ReleaseEvents(ctx, app, s.serves.Version)
	if machines.StatusOf(err) == http.StatusNotFound { // gone between the two reads
		return s, nil
	}
	for _, e := range events {
		if e.Step == client.StepVerify && !e.Failed {
			s.url = first(home(e.URL), s.url)
		}
	}
	return s, err
}

func (f *factory) printServing(app string, s standing) {
	if r := s.serves; r != nil {
		f.io.Printf("v%d serves, %s by %s %s", r.Version, printable(first(r.Description, r.Reason)), printable(first(r.Author, "-")), f.io.Time(r.CreatedAt))
		if s.url != "" {
			f.io.Printf(", at %s", s.url)
		}
		f.io.Printf("\n")
	}
	r := s.newest
	switch {
	case r == nil || r.Current:
	case !r.Final():
		f.io.Printf("v%d is being rolled out: `roost releases watch v%d --app %s` follows it\n", r.Version, r.Version, app)
	case r.Status == "failed":
		why, _, _ := strings.Cut(r.Message, "\n")
		f.io.Printf("v%d failed %s: %s\n", r.Version, f.io.Time(r.CreatedAt), printable(why))
	}
}

func (f *factory) hostStatus(cmd *cobra.Command, asJSON bool) error {
	c, err := f.client()
	if err != nil {
		return err
	}
	hosts, err := c.Hosts(cmd.Context())
	if err != nil {
		return err
	}
	if asJSON {
		return f.io.JSON(hosts)
	}
	rows := make([][]string, 0, len(hosts))
	for _, h := range hosts {
		var states []string
		for _, s := range slices.Sorted(maps.Keys(h.Machines)) {
			states = append(states, fmt.Sprintf("%d %s", h.Machines[s], s))
		}
		memory := fmt.Sprintf("%.0f MB", mb(h.Memory))
		swap := "-"
		if h.Local != nil {
			memory = fmt.Sprintf("%.0f of %.0f MB free", mb(h.Local.Free), mb(h.Local.Memory))
			swap = h.Local.Swap
		}
		rows = append(rows, []string{h.ID, h.Name, h.Region, memory, swap, first(strings.Join(states, ", "), "no machines")})
	}
	return f.io.List([]string{"host", "name", "region", "memory", "suspended memory to", "machines"}, rows)
}
