package seal

import "strings"

// Stream masks secrets in a text that comes in pieces, cut anywhere: what may
// be the beginning of a secret is held back until more has come. It belongs to
// one goroutine.
type Stream struct {
	s    *Scrubber
	held string
}

// Stream returns one for a text's beginning.
func (s *Scrubber) Stream() *Stream { return &Stream{s: s} }

// Write takes the next piece and returns what can be shown, all secrets in it
// masked.
func (t *Stream) Write(piece string) string {
	if t.s == nil {
		return piece
	}
	text := t.held + piece
	var b strings.Builder
	done := 0 // all before it is in b
	for i := 0; i < len(text); {
		match, more := t.s.at(text[i:])
		if more { // a longer one may yet come
			b.WriteString(text[done:i])
			t.held = text[i:]
			return b.String()
		}
		if match == 0 {
			i++
			continue
		}
		b.WriteString(text[done:i])
		b.WriteString(Mask)
		i += match
		done = i
	}
	b.WriteString(text[done:])
	t.held = ""
	return b.String()
}

// Close returns what was held back: nothing more comes.
func (t *Stream) Close() string {
	held := t.held
	t.held = ""
	return t.s.Scrub(held)
}

// at returns the length of the secret that text begins with, 0 if it begins
// with none, and whether a longer one might be there if more came.
func (s *Scrubber) at(text string) (match int, more bool) {
	for _, form := range s.starts[text[0]] { // the longest first
		switch {
		case strings.HasPrefix(text, form):
			return len(form), false
		case strings.HasPrefix(form, text):
			return 0, true
		}
	}
	return 0, false
}
