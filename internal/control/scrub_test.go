package control

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/roost-run/roost/internal/seal"
)

// What a step writes in pieces shows no secret, however it is cut, and nothing
// of it is lost.
func TestBuildSecretInPieces(t *testing.T) {
	t.Parallel()
	const secret = "tok_4f81c2d9e0"
	now := time.Now()
	for cut := 1; cut < len(secret); cut++ {
		var shown [3]strings.Builder // of step a's streams, and of step b
		news := scrubNews(seal.NewScrubber(secret), func(n BuildNews) {
			var s solveStatus
			if err := json.Unmarshal(n.Status, &s); err != nil {
				t.Fatal(err)
			}
			var streams struct{ Logs []struct{ Stream int } }
			if err := json.Unmarshal(n.Status, &streams); err != nil {
				t.Fatal(err)
			}
			for i, l := range s.Logs {
				to := streams.Logs[i].Stream - 1
				if l.Vertex == "b" {
					to = 2
				}
				shown[to].Write(l.Data)
			}
		})
		type log struct {
			Vertex string
			Stream int
			Data   []byte
		}
		type vertex struct {
			Digest    string
			Completed *time.Time
		}
		send := func(vertexes []vertex, logs ...log) {
			raw, err := json.Marshal(map[string]any{"Vertexes": vertexes, "Logs": logs})
			if err != nil {
				t.Fatal(err)
			}
			news(BuildNews{Status: raw})
		}
		send(nil, log{"a", 1, []byte("token=" + secret[:cut])}, log{"a", 2, []byte("error ")}, log{"b", 1, []byte(secret[:cut])})
		for i, want := range []string{"token=", "error ", ""} {
			if got := shown[i].String(); got != want {
				t.Fatalf("cut at %d, stream %d: the first piece shows %q, want %q", cut, i, got, want)
			}
		}
		send(nil, log{"a", 2, []byte("here\n")}, log{"a", 1, []byte(secret[cut:] + " end " + secret[:3])})
		send([]vertex{{"a", &now}, {"b", nil}})
		for i, want := range []string{"token=" + seal.Mask + " end " + secret[:3], "error here\n", ""} {
			if got := shown[i].String(); got != want {
				t.Errorf("cut at %d, stream %d: got %q, want %q", cut, i, got, want)
			}
		}
		send([]vertex{{"b", &now}})
		if got := shown[2].String(); got != secret[:cut] {
			t.Errorf("cut at %d: at the end of its step got %q, want %q", cut, got, secret[:cut])
		}
	}
}
