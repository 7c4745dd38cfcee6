// Package replay reads an app's wish to have a request delivered elsewhere: the
// fly-replay response header and the JSON body of type
// application/vnd.fly.replay+json (Fly docs, "Dynamic Request Routing"). It
// checks the form only; following a replay is the proxy's business.
package replay

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/textproto"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/net/http/httpguts"

	root "github.com/roost-run/roost"
)

// Names on the wire.
const (
	Header      = "Fly-Replay"
	ContentType = "application/vnd.fly.replay+json"
	// MaxJSON bounds a JSON replay body.
	MaxJSON = 64 << 10
)

// Fallback says what happens when the target cannot be reached.
type Fallback string

// The values of Fallback.
const (
	FallbackNone       Fallback = ""
	FallbackForceSelf  Fallback = "force_self"  // back to the very machine
	FallbackPreferSelf Fallback = "prefer_self" // back to it or to another of its app
)

// Replay is a checked wish.
type Replay struct {
	Regions        []string // codes and aliases, in order of preference
	Instance       root.MachineID
	PreferInstance root.MachineID
	App            root.AppName
	State          string
	Elsewhere      bool
	Timeout        time.Duration // 0: none
	Fallback       Fallback
	Transform      Transform
}

// Transform changes the request on its way; deletions come first.
type Transform struct {
	Path          string // path and query; "" keeps them
	DeleteHeaders []string
	SetHeaders    []HeaderField
}

// HeaderField is a header to set.
type HeaderField struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// ParseHeader reads the value of a fly-replay header. Errors have kind Invalid.
func ParseHeader(value string) (*Replay, error) {
	r := &Replay{}
	seen := make(map[string]bool)
	for rest := value; ; {
		var field string
		var err error
		field, rest, err = cutField(rest)
		if err != nil {
			return nil, err
		}
		if field = strings.TrimSpace(field); field != "" {
			key, v, ok := strings.Cut(field, "=")
			key = strings.ToLower(strings.TrimSpace(key))
			if !ok {
				return nil, root.Errorf(root.Invalid, "fly-replay: %q is not key=value", clip(field))
			}
			if seen[key] {
				return nil, root.Errorf(root.Invalid, "fly-replay: %s is there twice", clip(key))
			}
			seen[key] = true
			v = strings.TrimSpace(v)
			if len(v) >= 2 && v[0] == '"' && v[len(v)-1] == '"' {
				v = v[1 : len(v)-1]
			}
			if strings.Contains(v, `"`) {
				return nil, root.Errorf(root.Invalid, "fly-replay: %s: stray quote", clip(key))
			}
			if err := r.set(key, v); err != nil {
				return nil, err
			}
		}
		if rest == "" {
			break
		}
	}
	return r, r.check()
}

// cutField cuts at the first semicolon that is not inside quotes.
func cutField(s string) (field, rest string, err error) {
	quoted := false
	for i := range len(s) {
		switch s[i] {
		case '"':
			quoted = !quoted
		case ';':
			if !quoted {
				return s[:i], s[i+1:], nil
			}
		}
	}
	if quoted {
		return "", "", root.Errorf(root.Invalid, "fly-replay: a quote is not closed")
	}
	return s, "", nil
}

func (r *Replay) set(key, v string) (err error) {
	switch key {
	case "region":
		r.Regions, err = parseRegions(v)
	case "instance":
		r.Instance, err = root.ParseMachineID(v)
	case "prefer_instance":
		r.PreferInstance, err = root.ParseMachineID(v)
	case "app":
		r.App, err = root.ParseAppName(v)
	case "state":
		r.State, err = v, checkText(v)
	case "elsewhere":
		r.Elsewhere, err = strconv.ParseBool(v)
	case "timeout":
		r.Timeout, err = parseTimeout(v)
	case "fallback":
		r.Fallback = Fallback(v)
	default:
		return root.Errorf(root.Invalid, "fly-replay: unknown field %q", clip(key))
	}
	if err != nil {
		return root.Errorf(root.Invalid, "fly-replay: %s: %s", key, reason(err))
	}
	return nil
}

// wireReplay is the JSON form.
type wireReplay struct {
	Region         string         `json:"region,omitempty"`
	Instance       string         `json:"instance,omitempty"`
	PreferInstance string         `json:"prefer_instance,omitempty"`
	App            string         `json:"app,omitempty"`
	State          string         `json:"state,omitempty"`
	Elsewhere      bool           `json:"elsewhere,omitempty"`
	Timeout        string         `json:"timeout,omitempty"`
	Fallback       string         `json:"fallback,omitempty"`
	Transform      *wireTransform `json:"transform,omitempty"`
	// Accepted without effect: replies are not cached.
	Cache       json.RawMessage `json:"cache,omitempty"`
	AllowBypass *bool           `json:"allow_bypass,omitempty"`
}

type wireTransform struct {
	Path          string        `json:"path,omitempty"`
	DeleteHeaders []string      `json:"delete_headers,omitempty"`
	SetHeaders    []HeaderField `json:"set_headers,omitempty"`
}

// ParseJSON reads a JSON replay body. Errors have kind Invalid.
func ParseJSON(body []byte) (*Replay, error) {
	if len(body) > MaxJSON {
		return nil, root.Errorf(root.Invalid, "the replay body is larger than %d bytes", MaxJSON)
	}
	var w wireReplay
	dec := json.NewDecoder(bytes.NewReader(body))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&w); err != nil {
		return nil, root.Errorf(root.Invalid, "the replay body is not valid: %v", err)
	}
	if _, err := dec.Token(); err != io.EOF {
		return nil, root.Errorf(root.Invalid, "the replay body has something after its end")
	}
	r := &Replay{Elsewhere: w.Elsewhere}
	for _, f := range []struct{ key, value string }{
		{"region", w.Region}, {"instance", w.Instance}, {"prefer_instance", w.PreferInstance}, {"app", w.App},
		{"state", w.State}, {"timeout", w.Timeout}, {"fallback", w.Fallback},
	} {
		if f.value == "" {
			continue
		}
		if err := r.set(f.key, f.value); err != nil {
			return nil, err
		}
	}
	if w.Transform != nil {
		r.Transform = Transform{Path: w.Transform.Path}
		r.Transform.DeleteHeaders = append(r.Transform.DeleteHeaders, w.Transform.DeleteHeaders...)
		r.Transform.SetHeaders = append(r.Transform.SetHeaders, w.Transform.SetHeaders...)
	}
	return r, r.check()
}

func (r *Replay) check() error {
	switch {
	case r.Instance != "" && r.PreferInstance != "":
		return root.Errorf(root.Invalid, "fly-replay: instance and prefer_instance exclude each other")
	case r.Instance == "" && r.PreferInstance == "" && r.App == "" && len(r.Regions) == 0 && !r.Elsewhere:
		return root.Errorf(root.Invalid, "fly-replay: no target: name an instance, a region, an app, or elsewhere=true")
	}
	switch r.Fallback {
	case FallbackNone, FallbackForceSelf, FallbackPreferSelf:
	default:
		return root.Errorf(root.Invalid, "fly-replay: fallback: %q is not one of force_self, prefer_self", clip(string(r.Fallback)))
	}
	t := &r.Transform
	if t.Path != "" && (t.Path[0] != '/' || strings.ContainsFunc(t.Path, func(c rune) bool { return c <= ' ' || c == 0x7f || c == '#' })) {
		return root.Errorf(root.Invalid, "fly-replay: transform.path: %q is not a path", clip(t.Path))
	}
	for _, name := range t.DeleteHeaders {
		if !httpguts.ValidHeaderFieldName(name) {
			return root.Errorf(root.Invalid, "fly-replay: transform.delete_headers: %q is not a header's name", clip(name))
		}
	}
	for _, h := range t.SetHeaders {
		if !httpguts.ValidHeaderFieldName(h.Name) || !httpguts.ValidHeaderFieldValue(h.Value) {
			return root.Errorf(root.Invalid, "fly-replay: transform.set_headers: %q is not a header", clip(h.Name))
		}
		switch textproto.CanonicalMIMEHeaderKey(h.Name) {
		case "Connection", "Content-Length", "Transfer-Encoding", "Trailer", "Upgrade", "Te", "Keep-Alive", "Proxy-Connection":
			return root.Errorf(root.Invalid, "fly-replay: transform.set_headers: %s belongs to the connection", h.Name)
		}
	}
	return nil
}

// String prints the replay as a header; transform has no place there.
func (r *Replay) String() string {
	var b strings.Builder
	add := func(key, value string) {
		if value == "" {
			return
		}
		if b.Len() > 0 {
			b.WriteByte(';')
		}
		if strings.ContainsAny(value, ",; ") {
			value = `"` + value + `"`
		}
		b.WriteString(key + "=" + value)
	}
	add("app", string(r.App))
	add("region", strings.Join(r.Regions, ","))
	add("instance", string(r.Instance))
	add("prefer_instance", string(r.PreferInstance))
	if r.Elsewhere {
		add("elsewhere", "true")
	}
	add("state", r.State)
	if r.Timeout > 0 {
		add("timeout", r.Timeout.String())
	}
	add("fallback", string(r.Fallback))
	return b.String()
}

// JSON prints the replay as a body.
func (r *Replay) JSON() ([]byte, error) {
	w := wireReplay{
		Region: strings.Join(r.Regions, ","), Instance: string(r.Instance), PreferInstance: string(r.PreferInstance),
		App: string(r.App), State: r.State, Elsewhere: r.Elsewhere, Fallback: string(r.Fallback),
	}
	if r.Timeout > 0 {
		w.Timeout = r.Timeout.String()
	}
	if t := r.Transform; t.Path != "" || len(t.DeleteHeaders)+len(t.SetHeaders) > 0 {
		wt := wireTransform(t)
		w.Transform = &wt
	}
	return json.Marshal(w)
}

// Apply changes the headers of a request as the transform says.
func (t *Transform) Apply(h http.Header) {
	for _, name := range t.DeleteHeaders {
		h.Del(name)
	}
	for _, f := range t.SetHeaders {
		h.Set(f.Name, f.Value)
	}
}

// ParseRegions reads a list of regions and aliases, as routing headers have it.
func ParseRegions(s string) ([]string, error) { return parseRegions(s) }

func parseRegions(s string) ([]string, error) {
	var regions []string
	for part := range strings.SplitSeq(s, ",") {
		if part = strings.ToLower(strings.TrimSpace(part)); part == "" {
			continue
		}
		if _, err := root.ParseRegion(part); err != nil {
			return nil, err
		}
		if !slices.Contains(regions, part) {
			regions = append(regions, part)
		}
	}
	if len(regions) == 0 {
		return nil, root.Errorf(root.Invalid, "no region named")
	}
	if len(regions) > maxRegions {
		return nil, root.Errorf(root.Invalid, "more than %d regions", maxRegions)
	}
	return regions, nil
}

// maxRegions bounds a list; there are not as many regions.
const maxRegions = 64

func parseTimeout(s string) (time.Duration, error) {
	d, err := time.ParseDuration(s)
	if err != nil || d <= 0 {
		return 0, root.Errorf(root.Invalid, "%q is not a duration such as 5s", clip(s))
	}
	return d, nil
}

func checkText(s string) error {
	if strings.ContainsAny(s, `"`) || !httpguts.ValidHeaderFieldValue(s) || strings.TrimSpace(s) != s {
		return fmt.Errorf("%q cannot be sent in a header", clip(s))
	}
	return nil
}

func reason(err error) string {
	if e := root.MessageOf(err); e != "internal error" {
		return e
	}
	return err.Error()
}

func clip(s string) string {
	if len(s) > 80 {
		return s[:80] + "..."
	}
	return s
}
