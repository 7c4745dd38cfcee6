package control

import (
	"context"
	"encoding/json"
	"maps"
	"slices"
	"strings"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/catalog"
	"github.com/roost-run/roost/internal/seal"
)

// scrubbedLogs masks the app's secrets in every line that is read: what an app,
// a release command or a build wrote. The server process, which writes the
// logs, knows no secrets and shall not.
type scrubbedLogs struct {
	logs    LogReader
	vault   *Vault
	catalog *catalog.Catalog
}

func (s scrubbedLogs) Tail(ctx context.Context, app root.AppName, f LogFilter, follow bool, line func(LogLine) error) error {
	m := &masker{vault: s.vault, catalog: s.catalog, app: app, revision: -1}
	if err := m.refresh(ctx); err != nil { // nothing is shown that could not be masked
		return err
	}
	return s.logs.Tail(ctx, app, f, follow, func(l LogLine) error {
		if err := m.refresh(ctx); err != nil {
			return err
		}
		l.Message = m.scrubber.Scrub(l.Message)
		return line(l)
	})
}

// masker keeps a scrubber for all secrets that an app has, and those it had
// as long as they are kept. It belongs to one goroutine.
type masker struct {
	vault   *Vault
	catalog *catalog.Catalog
	app     root.AppName

	scrubber *seal.Scrubber
	revision int64 // of the catalog when it was last looked at
	version  int   // of the secrets that the scrubber knows
}

// refresh takes in secrets that were set since.
func (m *masker) refresh(ctx context.Context) error {
	snapshot := m.catalog.Snapshot()
	if snapshot.Revision() == m.revision {
		return nil
	}
	m.revision = snapshot.Revision()
	app := snapshot.App(m.app)
	if app == nil || app.Secrets == m.version {
		return nil
	}
	versions, err := m.vault.Store.SecretVersions(ctx, m.app)
	if err != nil {
		return err
	}
	scrubber, err := m.vault.Scrubber(ctx, m.app, versions...)
	if err != nil {
		return err
	}
	m.scrubber, m.version = scrubber, app.Secrets
	return nil
}

// buildSecrets adds the app's own secrets to those that the request brings,
// and returns what masks all of them, and whatever else the app keeps secret.
func (s *Images) buildSecrets(ctx context.Context, app *root.App, r *BuildRequest) (*seal.Scrubber, error) {
	if s.d.Vault == nil {
		return seal.NewScrubber(slices.Collect(maps.Values(r.Secrets))...), nil
	}
	values, err := s.d.Vault.Open(ctx, app.Name, app.Secrets)
	if err != nil {
		return nil, err
	}
	given := maps.Clone(r.Secrets)
	if given == nil {
		given = map[string]string{}
	}
	var missing []string
	for _, name := range r.AppSecrets {
		value, ok := values[name]
		if !ok {
			missing = append(missing, name)
		}
		if _, own := given[name]; !own {
			given[name] = value
		}
	}
	if len(missing) > 0 {
		return nil, root.Errorf(root.Invalid, "the app has no secret %s: set it with `roost secrets set`", strings.Join(missing, ", "))
	}
	r.Secrets = given
	return seal.NewScrubber(slices.Concat(slices.Collect(maps.Values(given)), slices.Collect(maps.Values(values)))...), nil
}

// scrubNews masks secrets in a build's output. BuildKit's account has its
// lines as bytes, which JSON writes in base64.
func scrubNews(s *seal.Scrubber, news func(BuildNews)) func(BuildNews) {
	if s == nil || news == nil {
		return news
	}
	return func(n BuildNews) {
		n.Log = s.Scrub(n.Log)
		if len(n.Status) > 0 {
			n.Status = scrubStatus(s, n.Status)
		}
		news(n)
	}
}

func scrubStatus(s *seal.Scrubber, raw json.RawMessage) json.RawMessage {
	var status map[string]json.RawMessage
	if json.Unmarshal(raw, &status) != nil {
		return json.RawMessage(`{}`)
	}
	for key, list := range status {
		if !strings.EqualFold(key, "logs") {
			status[key] = json.RawMessage(s.Scrub(string(list)))
			continue
		}
		var logs []map[string]json.RawMessage
		if json.Unmarshal(list, &logs) != nil {
			delete(status, key)
			continue
		}
		for _, log := range logs {
			for name, value := range log {
				var data []byte
				if !strings.EqualFold(name, "data") || json.Unmarshal(value, &data) != nil {
					continue
				}
				if masked, err := json.Marshal([]byte(s.Scrub(string(data)))); err == nil {
					log[name] = masked
				}
			}
		}
		if masked, err := json.Marshal(logs); err == nil {
			status[key] = masked
		}
	}
	out, err := json.Marshal(status)
	if err != nil {
		return json.RawMessage(`{}`)
	}
	return out
}
