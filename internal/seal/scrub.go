package seal

import (
	"encoding/base64"
	"encoding/json"
	"log/slog"
	"net/url"
	"slices"
	"strings"
)

const (
	// Mask stands where a secret was.
	Mask = "[secret]"
	// minScrub is the shortest value that is masked: shorter ones are words
	// and numbers ("true", "8080") that stand everywhere.
	minScrub = 6
)

// Scrubber masks secret values in text: as they are, in base64, percent-encoded
// and as JSON writes them. Of a value of several lines each line counts. The
// nil Scrubber masks nothing.
type Scrubber struct {
	replacer *strings.Replacer
	starts   map[byte][]string // what is masked, by its first byte, the longest first
}

// NewScrubber returns one for these values; nil when none is long enough.
func NewScrubber(values ...string) *Scrubber {
	var forms []string
	for _, v := range values {
		forms = append(forms, encodings(v)...)
		if strings.ContainsAny(v, "\r\n") {
			for line := range strings.Lines(v) {
				forms = append(forms, strings.TrimSpace(line))
			}
		}
	}
	forms = slices.DeleteFunc(forms, func(f string) bool { return len(f) < minScrub })
	if len(forms) == 0 {
		return nil
	}
	// Of two that begin alike the replacer takes the first in the list.
	slices.SortFunc(forms, func(a, b string) int {
		if len(a) != len(b) {
			return len(b) - len(a)
		}
		return strings.Compare(a, b)
	})
	forms = slices.Compact(forms)
	pairs, starts := make([]string, 0, 2*len(forms)), map[byte][]string{}
	for _, f := range forms {
		pairs = append(pairs, f, Mask)
		starts[f[0]] = append(starts[f[0]], f)
	}
	return &Scrubber{replacer: strings.NewReplacer(pairs...), starts: starts}
}

// encodings are the ways in which a value commonly gets into a text.
func encodings(v string) []string {
	if len(v) < minScrub {
		return nil // nor what it becomes: "true" is dHJ1ZQ==
	}
	forms := []string{
		v, strings.TrimSpace(v),
		strings.TrimRight(base64.StdEncoding.EncodeToString([]byte(v)), "="),
		strings.TrimRight(base64.URLEncoding.EncodeToString([]byte(v)), "="),
		url.QueryEscape(v), url.PathEscape(v),
	}
	if quoted, err := json.Marshal(v); err == nil {
		forms = append(forms, string(quoted[1:len(quoted)-1]))
	}
	return forms
}

// Scrub returns text with every secret in it masked.
func (s *Scrubber) Scrub(text string) string {
	if s == nil {
		return text
	}
	return s.replacer.Replace(text)
}

// String keeps the values out of whatever prints a Scrubber.
func (s *Scrubber) String() string { return "scrubber" }

// GoString is String.
func (s *Scrubber) GoString() string { return "scrubber" }

// LogValue is String.
func (s *Scrubber) LogValue() slog.Value { return slog.StringValue("scrubber") }
