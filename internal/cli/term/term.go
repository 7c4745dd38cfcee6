// Package term is how the command line talks: answers on standard output,
// everything else on standard error; tables that are aligned on a terminal and
// tab-separated in a pipe; no colour in a pipe or with NO_COLOR.
package term

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"
)

// IO is the streams of one command.
type IO struct {
	In       io.Reader
	Out, Err io.Writer
	// OutTTY and ErrTTY say that a person watches; InTTY that one can answer.
	InTTY, OutTTY, ErrTTY bool
	Color                 bool
	// Columns is the terminal's width; 0 asks the terminal.
	Columns int
	Now     func() time.Time

	mu sync.Mutex // guards writes to Err
}

// System returns the process's own streams.
func System() *IO {
	t := &IO{In: os.Stdin, Out: os.Stdout, Err: os.Stderr, InTTY: isTTY(os.Stdin), OutTTY: isTTY(os.Stdout), ErrTTY: isTTY(os.Stderr), Now: time.Now}
	t.Color = colorful(t.OutTTY, os.Getenv)
	return t
}

// colorful: no-color.org.
func colorful(tty bool, getenv func(string) string) bool {
	return tty && getenv("NO_COLOR") == "" && getenv("TERM") != "dumb"
}

func isTTY(f *os.File) bool {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

// Width is how many characters a line of the terminal has.
func (t *IO) Width() int {
	const usual = 80
	if f, ok := t.Err.(*os.File); ok {
		if size, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ); err == nil && size.Col > 0 {
			return int(size.Col)
		}
	}
	return usual
}

// Printf writes to the answer.
func (t *IO) Printf(format string, args ...any) { fmt.Fprintf(t.Out, format, args...) }

// Notef writes a line beside the answer.
func (t *IO) Notef(format string, args ...any) {
	t.mu.Lock()
	defer t.mu.Unlock()
	fmt.Fprintf(t.Err, format+"\n", args...)
}

// JSON writes v as the answer.
func (t *IO) JSON(v any) error {
	enc := json.NewEncoder(t.Out)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

// JSONLine prints one of many values that come as time goes by, each on a line
// of its own.
func (t *IO) JSONLine(v any) error { return json.NewEncoder(t.Out).Encode(v) }

// Table writes rows under a header: aligned for a person, tab-separated and
// whole in a pipe, where the header is left out.
func (t *IO) Table(header []string, rows [][]string) error { return t.table(header, rows, 0) }

// List is Table for things that are told apart at a glance: for a person it is
// no wider than the terminal, and what does not fit is cut or left out.
func (t *IO) List(header []string, rows [][]string) error {
	return t.table(header, rows, t.columns())
}

func (t *IO) table(header []string, rows [][]string, columns int) error {
	cells := make([][]string, len(rows))
	for i, row := range rows {
		cells[i] = clean(row)
	}
	if !t.OutTTY {
		for _, row := range cells {
			if _, err := fmt.Fprintln(t.Out, strings.Join(row, "\t")); err != nil {
				return err
			}
		}
		return nil
	}
	table, left := fit(header, cells, columns)
	w := tabwriter.NewWriter(t.Out, 0, 4, columnGap, ' ', 0)
	for i, row := range table {
		line := strings.Join(row, "\t")
		if i == 0 {
			line = strings.ToUpper(line)
		}
		fmt.Fprintln(w, line)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if len(left) > 0 {
		t.Notef("(too narrow for: %s)", strings.Join(left, ", "))
	}
	return nil
}

// clean keeps a cell from breaking the table, and control characters from
// reaching a terminal.
func clean(row []string) []string {
	out := make([]string, len(row))
	for i, cell := range row {
		out[i] = strings.Map(func(r rune) rune {
			if r < ' ' || r >= 0x7f && r < 0xa0 {
				return ' '
			}
			return r
		}, cell)
	}
	return out
}

// Time prints a moment: an age for a person, RFC 3339 in a pipe.
func (t *IO) Time(at time.Time) string {
	switch {
	case at.IsZero():
		return "-"
	case !t.OutTTY:
		return at.UTC().Format(time.RFC3339)
	}
	d := t.Now().Sub(at)
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%ds ago", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%dm ago", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh ago", int(d.Hours()))
	}
	return fmt.Sprintf("%dd ago", int(d.Hours()/24))
}

// Confirm asks a yes-or-no question; without a terminal the answer is no.
func (t *IO) Confirm(question string) (bool, error) {
	if !t.InTTY || !t.ErrTTY {
		return false, nil
	}
	fmt.Fprintf(t.Err, "%s [y/N] ", question)
	line, err := bufio.NewReader(t.In).ReadString('\n')
	if err != nil && line == "" {
		return false, err
	}
	answer := strings.ToLower(strings.TrimSpace(line))
	return answer == "y" || answer == "yes", nil
}
