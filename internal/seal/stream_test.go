package seal

import (
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// However a text is cut, what comes out is what the whole would be.
func TestStream(t *testing.T) {
	t.Parallel()
	s := NewScrubber("abcdef", "abcdefghij", "efghijkl", "aaaaaab", "line-one\nline-two", "p@ss word/1")
	for _, text := range []string{
		"abcdef", "abcdefghij", "xabcdefghijkl", "abcdeabcdef", "aaaaaaaaaab", "abcdefgh", "efghijkabcdef", "abc", "line-one\nline-two\nline-one", "p%40ss+word%2F1", "",
	} {
		for cut := range len(text) + 1 {
			w := s.Stream()
			if got, want := w.Write(text[:cut])+w.Write(text[cut:])+w.Close(), s.Scrub(text); got != want {
				t.Errorf("%q cut at %d: got %q, want %q", text, cut, got, want)
			}
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		s := NewScrubber(rapid.SliceOfN(rapid.StringMatching(`[ab]{6,9}`), 0, 4).Draw(t, "secrets")...)
		pieces := rapid.SliceOf(rapid.StringMatching(`[ab]{0,7}`)).Draw(t, "pieces")
		w, got := s.Stream(), ""
		for _, p := range pieces {
			got += w.Write(p)
		}
		if got += w.Close(); got != s.Scrub(strings.Join(pieces, "")) {
			t.Fatalf("got %q, want %q", got, s.Scrub(strings.Join(pieces, "")))
		}
	})
}

// What cannot be a secret is not held back.
func TestStreamDoesNotWait(t *testing.T) {
	t.Parallel()
	w := NewScrubber("s3cr3t-value").Stream()
	if got := w.Write("step 1 of 3 "); got != "step 1 of 3 " {
		t.Errorf("got %q", got)
	}
	if got := w.Write("tokens s3cr"); got != "tokens " {
		t.Errorf("got %q, want all but what may be a secret", got)
	}
	if got := w.Write("ew"); got != "s3crew" {
		t.Errorf("got %q", got)
	}
}
