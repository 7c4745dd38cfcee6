package control

import (
	"context"
	"encoding/json"
	"maps"
	"slices"
	"strings"
	"time"

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

// scrubNews masks secrets in a build's output.
func scrubNews(s *seal.Scrubber, news func(BuildNews)) func(BuildNews) {
	if s == nil || news == nil {
		return news
	}
	status := &statusScrubber{s: s, outputs: map[outputKey]*output{}}
	return func(n BuildNews) {
		n.Log = s.Scrub(n.Log)
		if len(n.Status) > 0 {
			n.Status = status.scrub(n.Status)
		}
		news(n)
	}
}

// statusScrubber masks secrets in BuildKit's account of a build. What steps
// write comes in pieces that may end anywhere, also in the middle of a secret:
// what may be the beginning of one waits for the rest, or for the step's end.
type statusScrubber struct {
	s       *seal.Scrubber
	outputs map[outputKey]*output
}

// outputKey is one of a step's streams.
type outputKey struct {
	step   string
	stream int
}

type output struct {
	*seal.Stream
	last map[string]json.RawMessage // the piece that came last
}

// scrub returns the account without secrets. Its lines are bytes, which JSON
// writes in base64. What cannot be read is left out.
func (x *statusScrubber) scrub(raw json.RawMessage) json.RawMessage {
	var status map[string]json.RawMessage
	if json.Unmarshal(raw, &status) != nil {
		return json.RawMessage(`{}`)
	}
	logsKey, logs, ended := "Logs", []map[string]json.RawMessage{}, map[string]bool{}
	for key, list := range status {
		switch {
		case strings.EqualFold(key, "logs"):
			logsKey = key
			logs = x.pieces(list)
			continue
		case strings.EqualFold(key, "vertexes"):
			var steps []struct {
				Digest    string
				Completed *time.Time
			}
			if json.Unmarshal(list, &steps) == nil {
				for _, step := range steps {
					ended[step.Digest] = ended[step.Digest] || step.Completed != nil
				}
			}
		}
		status[key] = json.RawMessage(x.s.Scrub(string(list)))
	}
	for key, o := range x.outputs {
		if !ended[key.step] {
			continue
		}
		delete(x.outputs, key)
		if held := o.Close(); held != "" {
			logs = append(logs, piece(o.last, held))
		}
	}
	delete(status, logsKey)
	if len(logs) > 0 {
		list, err := json.Marshal(logs)
		if err != nil {
			return json.RawMessage(`{}`)
		}
		status[logsKey] = list
	}
	out, err := json.Marshal(status)
	if err != nil {
		return json.RawMessage(`{}`)
	}
	return out
}

// pieces masks secrets in a list of pieces of output.
func (x *statusScrubber) pieces(list json.RawMessage) []map[string]json.RawMessage {
	var in, out []map[string]json.RawMessage
	if json.Unmarshal(list, &in) != nil {
		return nil
	}
	for _, log := range in {
		var key outputKey
		var data []byte
		for name, value := range log {
			var err error
			switch strings.ToLower(name) {
			case "vertex":
				err = json.Unmarshal(value, &key.step)
			case "stream":
				err = json.Unmarshal(value, &key.stream)
			case "data":
				err = json.Unmarshal(value, &data)
			}
			if err != nil {
				return out // nothing is shown that could not be read
			}
		}
		o := x.outputs[key]
		if o == nil {
			o = &output{Stream: x.s.Stream()}
			x.outputs[key] = o
		}
		o.last = log
		if text := o.Write(string(data)); text != "" {
			out = append(out, piece(log, text))
		}
	}
	return out
}

// piece is a copy of log with another text.
func piece(log map[string]json.RawMessage, text string) map[string]json.RawMessage {
	data, err := json.Marshal([]byte(text))
	if err != nil {
		data = []byte(`""`)
	}
	log = maps.Clone(log)
	for name := range log {
		if strings.EqualFold(name, "data") {
			log[name] = data
		}
	}
	return log
}
