package control

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	root "github.com/roost-run/roost"
)

// lines is a LogWriter that keeps what it gets.
type lines []string

func (l *lines) Log(e LogEntry) { *l = append(*l, e.Provider+" "+string(e.App)+": "+e.Message) }

func TestBuildLog(t *testing.T) {
	var got lines
	b := newBuildLog(&got, "shop")
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	end := at.Add(1500 * time.Millisecond)
	status := func(v any) {
		t.Helper()
		data, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		b.news(BuildNews{Status: data})
	}
	type vertex struct {
		Digest    string     `json:"digest"`
		Name      string     `json:"name,omitempty"`
		Started   *time.Time `json:"started,omitempty"`
		Completed *time.Time `json:"completed,omitempty"`
		Cached    bool       `json:"cached,omitempty"`
		Error     string     `json:"error,omitempty"`
	}
	type log struct {
		Vertex string
		Data   []byte
	}
	b.news(BuildNews{Log: "sent 3 files"})
	status(map[string]any{"Vertexes": []vertex{{Digest: "a", Name: "[1/2] FROM debian"}, {Digest: "b", Name: "[2/2] RUN make"}}})
	status(map[string]any{"Vertexes": []vertex{{Digest: "a", Name: "[1/2] FROM debian", Started: &at, Completed: &at, Cached: true}}})
	status(map[string]any{"Vertexes": []vertex{{Digest: "b", Name: "[2/2] RUN make", Started: &at}}, "Logs": []log{{"b", []byte("cc one\r\ncc t")}}})
	status(map[string]any{"Logs": []log{{"b", []byte("wo\nhalf")}}})
	status(map[string]any{"Vertexes": []vertex{{Digest: "b", Name: "[2/2] RUN make", Started: &at, Completed: &end, Error: "exit code: 2"}}})
	b.news(BuildNews{Status: json.RawMessage(`not json`)})
	b.end(root.Image{}, time.Second, "RUN make: exit code 2")
	want := lines{
		"build shop: sent 3 files", "build shop: #1 [1/2] FROM debian", "build shop: #1 CACHED",
		"build shop: #2 [2/2] RUN make", "build shop: #2 cc one", "build shop: #2 cc two", "build shop: #2 half",
		"build shop: #2 ERROR: exit code: 2", "build shop: build failed: RUN make: exit code 2",
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("lines (-want +got):\n%s", d)
	}
	b.end(root.Image{Registry: "registry.localhost", Repository: "shop", Tag: "v1"}, 2*time.Second, "")
	if last, want := got[len(got)-1], "build shop: built registry.localhost/shop:v1 in 2.0s"; last != want {
		t.Errorf("got %q, want %q", last, want)
	}
}
