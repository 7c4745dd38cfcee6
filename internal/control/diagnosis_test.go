package control

import (
	"strings"
	"testing"
)

// TestGuess: a guess that is wrong is worse than none.
func TestGuess(t *testing.T) {
	for evidence, want := range map[string]string{
		"ImportError: cannot import name 'admn' from 'django.contrib'": "misspelled",
		"ModuleNotFoundError: No module named 'reportlab'":             "lacks a package",
		"Out of memory: Killed process 12 (gunicorn)":                  "too little memory",
		"no chatroom is open":                                          "",
	} {
		got := guess(evidence, nil)
		if (want == "") != (got == "") || !strings.Contains(got, want) {
			t.Errorf("%s: got %q, want %q in it", evidence, got, want)
		}
	}
}
