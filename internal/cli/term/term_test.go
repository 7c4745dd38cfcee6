package term

import (
	"bytes"
	"strings"
	"testing"
	"time"
)

func TestColorful(t *testing.T) {
	for name, c := range map[string]struct {
		tty  bool
		env  map[string]string
		want bool
	}{
		"terminal": {true, nil, true}, "pipe": {false, nil, false},
		"NO_COLOR": {true, map[string]string{"NO_COLOR": "1"}, false}, "dumb": {true, map[string]string{"TERM": "dumb"}, false},
	} {
		if got := colorful(c.tty, func(k string) string { return c.env[k] }); got != c.want {
			t.Errorf("%s: got %v, want %v", name, got, c.want)
		}
	}
}

func TestTable(t *testing.T) {
	rows := [][]string{{"a", "one\ttwo\nthree"}, {"long name", "x\x1b[31m\x7f"}}
	for name, c := range map[string]struct {
		tty  bool
		want string
	}{
		"terminal": {true, "NAME       VALUE\na          one two three\nlong name  x [31m \n"},
		"pipe":     {false, "a\tone two three\nlong name\tx [31m \n"},
	} {
		var out bytes.Buffer
		if err := (&IO{Out: &out, OutTTY: c.tty}).Table([]string{"name", "value"}, rows); err != nil || out.String() != c.want {
			t.Errorf("%s: got %q, %v, want %q", name, out.String(), err, c.want)
		}
	}
}

// TestList: as wide as the terminal, first cut, then without columns; a pipe
// gets everything.
func TestList(t *testing.T) {
	header := []string{"id", "name", "image", "group"}
	rows := [][]string{{"148e1234c56789", "amber-bird-1", "shop:deployment-01M80NX4N09D19XE8S6S1CK7AP", "web"}}
	for name, c := range map[string]struct {
		columns   int
		tty       bool
		out, note string
	}{
		"wide":        {200, true, "ID              NAME          IMAGE                                       GROUP\n148e1234c56789  amber-bird-1  shop:deployment-01M80NX4N09D19XE8S6S1CK7AP  web\n", ""},
		"narrow":      {60, true, "ID              NAME          IMAGE                    GROUP\n148e1234c56789  amber-bird-1  shop:deployment-01M80N…  web\n", ""},
		"narrower":    {40, true, "ID              NAME          GROUP\n148e1234c56789  amber-bird-1  web\n", "(too narrow for: image)\n"},
		"very narrow": {5, true, "ID\n148e1234c56789\n", "(too narrow for: group, name, image)\n"},
		"unknown":     {0, true, "ID              NAME          IMAGE                                       GROUP\n148e1234c56789  amber-bird-1  shop:deployment-01M80NX4N09D19XE8S6S1CK7AP  web\n", ""},
		"pipe":        {5, false, "148e1234c56789\tamber-bird-1\tshop:deployment-01M80NX4N09D19XE8S6S1CK7AP\tweb\n", ""},
	} {
		var out, errs bytes.Buffer
		if err := (&IO{Out: &out, Err: &errs, OutTTY: c.tty, Columns: c.columns}).List(header, rows); err != nil || out.String() != c.out || errs.String() != c.note {
			t.Errorf("%s: got %q and %q, %v, want %q and %q", name, out.String(), errs.String(), err, c.out, c.note)
		}
	}
}

func TestTime(t *testing.T) {
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.FixedZone("", 3600))
	person, pipe := &IO{OutTTY: true, Now: func() time.Time { return now }}, &IO{Now: func() time.Time { return now }}
	for ago, want := range map[time.Duration]string{0: "0s ago", 59 * time.Second: "59s ago", time.Minute: "1m ago", 59 * time.Minute: "59m ago", 2 * time.Hour: "2h ago", 47 * time.Hour: "47h ago", 49 * time.Hour: "2d ago"} {
		if got := person.Time(now.Add(-ago)); got != want {
			t.Errorf("%s before: got %q, want %q", ago, got, want)
		}
	}
	if got, want := pipe.Time(now), "2026-03-01T11:00:00Z"; got != want {
		t.Errorf("in a pipe: got %q, want %q", got, want)
	}
	if got := pipe.Time(time.Time{}); got != "-" {
		t.Errorf("no moment: got %q, want -", got)
	}
}

func TestConfirm(t *testing.T) {
	for name, c := range map[string]struct {
		in, err bool
		input   string
		want    bool
	}{
		"yes": {true, true, "yes\n", true}, "Y without newline": {true, true, "Y", true}, "anything else": {true, true, "sure\n", false},
		"nobody can answer": {false, true, "y\n", false}, "nobody sees the question": {true, false, "y\n", false},
	} {
		var asked bytes.Buffer
		got, err := (&IO{In: strings.NewReader(c.input), Err: &asked, InTTY: c.in, ErrTTY: c.err}).Confirm("Sure?")
		if got != c.want || err != nil {
			t.Errorf("%s: got %v, %v, want %v", name, got, err, c.want)
		}
		if (asked.Len() > 0) != (c.in && c.err) {
			t.Errorf("%s: asked %q", name, asked.String())
		}
	}
	if _, err := (&IO{In: strings.NewReader(""), Err: &bytes.Buffer{}, InTTY: true, ErrTTY: true}).Confirm("Sure?"); err == nil {
		t.Error("end of input: got no error")
	}
}
