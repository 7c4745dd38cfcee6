package control

import (
	"context"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/auth"
	"github.com/roost-run/roost/internal/catalog"
)

// shelf is a LogReader of lines in memory.
type shelf []LogLine

func (s shelf) Tail(_ context.Context, _ root.AppName, f LogFilter, _ bool, line func(LogLine) error) error {
	for _, l := range s {
		if !l.At.Before(f.Since) && (f.Match == nil || f.Match(l)) {
			if err := line(l); err != nil {
				return err
			}
		}
	}
	return nil
}

func TestLogFilter(t *testing.T) {
	born := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	web := &root.Machine{ID: "aaaaaaaaaaaaaa", App: "shop"}
	web.Spec.Config.Metadata = map[string]string{root.MetadataProcessGroup: "web"}
	snapshot := root.NewSnapshot().With(1, root.Change{App: &root.App{Name: "shop", Org: "personal", CreatedAt: born}}, root.Change{Machine: web})
	s := &Logs{d: Deps{Catalog: catalog.New(snapshot), Logs: shelf{
		{At: born.Add(-time.Hour), Provider: LogApp, Message: "of an app that had the name before"},
		{At: born, Provider: LogBuild, Message: "build"},
		{At: born.Add(time.Second), Provider: LogApp, Machine: web.ID, Region: "loc", Message: "web"},
		{At: born.Add(2 * time.Second), Provider: LogApp, Machine: "bbbbbbbbbbbbbb", Region: "fra", Message: "gone"},
		{At: born.Add(3 * time.Second), Provider: LogProxy, Machine: web.ID, Region: "loc", Message: "proxy"},
	}}}
	for name, tt := range map[string]struct {
		filter LogFilter
		want   []string
	}{
		"all":       {LogFilter{}, []string{"build", "web", "gone", "proxy"}},
		"since":     {LogFilter{Since: born.Add(2 * time.Second)}, []string{"gone", "proxy"}},
		"providers": {LogFilter{Providers: []string{LogBuild, LogProxy}}, []string{"build", "proxy"}},
		"region":    {LogFilter{Regions: []root.Region{"fra"}}, []string{"gone"}},
		"group":     {LogFilter{Group: "web"}, []string{"web", "proxy"}},
		"both":      {LogFilter{Group: "web", Providers: []string{LogApp}}, []string{"web"}},
	} {
		t.Run(name, func(t *testing.T) {
			var got []string
			err := s.Tail(t.Context(), auth.LocalRoot(), "shop", tt.filter, false, func(l LogLine) error { got = append(got, l.Message); return nil })
			if d := cmp.Diff(tt.want, got); d != "" || err != nil {
				t.Errorf("%v, lines (-want +got):\n%s", err, d)
			}
		})
	}
	if err := s.Tail(t.Context(), auth.LocalRoot(), "shop", LogFilter{Providers: []string{"ap"}}, false, nil); !root.IsKind(err, root.Invalid) {
		t.Errorf("an unknown provider: %v", err)
	}
}
