package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"text/tabwriter"
	"time"
)

// report collects what was measured, prints it, and writes it into the
// generated section of a document.
type report struct {
	load    string // of the host before it began
	rows    []row
	details []detail
	proxies []proxyRow
	notes   []string
}

type row struct{ what, measured, promise, verdict, beside string }

type detail struct {
	what string
	s    samples
}

type proxyRow struct {
	name    string
	rate    float64       // requests a second
	cpu     time.Duration // for each request
	p50     time.Duration
	p99     time.Duration
	version string
}

func (r *report) detail(what string, s samples) { r.details = append(r.details, detail{what, s}) }
func (r *report) note(text string)              { r.notes = append(r.notes, text) }

// below records a measurement whose promise is a duration.
func (r *report) below(what string, got, bar time.Duration, beside string) {
	verdict := "hit"
	if got > bar {
		verdict = "MISS by " + ms(got-bar)
	}
	r.rows = append(r.rows, row{what, ms(got), "<= " + ms(bar), verdict, beside})
}

// memory records one whose promise is a number of bytes; 0 is none.
func (r *report) memory(what string, got, bar int64, beside string) {
	promise, verdict := "-", "-"
	if bar > 0 {
		promise, verdict = "<= "+mb(bar), "hit"
		if got > bar {
			verdict = "MISS by " + mb(got-bar)
		}
	}
	r.rows = append(r.rows, row{what, mb(got), promise, verdict, beside})
}

// cpu records one whose promise is a percentage of a core; 0 is none.
func (r *report) cpu(what string, got, bar float64, beside string) {
	promise, verdict := "-", "-"
	if bar > 0 {
		promise, verdict = fmt.Sprintf("<= %.1f %%", bar), "hit"
		if got > bar {
			verdict = fmt.Sprintf("MISS by %.2f %%", got-bar)
		}
	}
	r.rows = append(r.rows, row{what, fmt.Sprintf("%.2f %%", got), promise, verdict, beside})
}

// against records a cost whose promise is that of the best peer.
func (r *report) against(what string, got, peer time.Duration, beside string) {
	verdict := "hit"
	if got > peer {
		verdict = fmt.Sprintf("MISS, %.1f times", float64(got)/float64(peer))
	}
	r.rows = append(r.rows, row{what, fmt.Sprintf("%.1f µs", float64(got)/1e3), fmt.Sprintf("<= %.1f µs", float64(peer)/1e3), verdict, beside})
}

// tables are the report's, as titles and cells.
func (r *report) tables() (titles []string, tables [][][]string) {
	promises := [][]string{{"What", "Measured", "Promise", "", "In the same run"}}
	for _, x := range r.rows {
		promises = append(promises, []string{x.what, x.measured, x.promise, x.verdict, x.beside})
	}
	titles, tables = []string{"Promises"}, [][][]string{promises}
	details := [][]string{{"Measurement", "Repetitions", "p50", "p90"}}
	for _, d := range r.details {
		details = append(details, []string{d.what, fmt.Sprint(len(d.s)), ms(d.s.p50()), ms(d.s.p90())})
	}
	if len(r.details) > 0 {
		titles, tables = append(titles, "All times"), append(tables, details)
	}
	if len(r.proxies) > 0 {
		list := [][]string{{"Proxy", "Requests/s", "CPU per request", "p50", "p99"}}
		for _, p := range r.proxies {
			list = append(list, []string{p.version, fmt.Sprintf("%.0f", p.rate), fmt.Sprintf("%.1f µs", float64(p.cpu)/1e3), ms(p.p50), ms(p.p99)})
		}
		titles, tables = append(titles, "HTTP/1.1 proxying, keep-alive, 1 KB"), append(tables, list)
	}
	return titles, tables
}

// print writes the tables for a person.
func (r *report) print(w io.Writer) error {
	titles, tables := r.tables()
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for i, table := range tables {
		fmt.Fprintf(t, "\n%s\n", titles[i])
		for _, line := range table {
			fmt.Fprintf(t, "  %s\n", strings.Join(line, "\t"))
		}
		if err := t.Flush(); err != nil {
			return err
		}
	}
	for _, n := range r.notes {
		fmt.Fprintln(w, "\n"+n)
	}
	return nil
}

// The markers of the generated section.
const markBegin, markEnd = "<!-- bench:begin -->", "<!-- bench:end -->"

// write replaces the generated section of a document.
func (r *report) write(ctx context.Context, file string) error {
	old, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	before, rest, ok := bytes.Cut(old, []byte(markBegin))
	_, after, ok2 := bytes.Cut(rest, []byte(markEnd))
	if !ok || !ok2 {
		return fmt.Errorf("%s has no section between %s and %s", file, markBegin, markEnd)
	}
	var b bytes.Buffer
	b.Write(before)
	fmt.Fprintf(&b, "%s\n\n%s\n", markBegin, r.describeHost(ctx))
	titles, tables := r.tables()
	for i, table := range tables {
		fmt.Fprintf(&b, "\n### %s\n\n", titles[i])
		for n, line := range table {
			fmt.Fprintf(&b, "| %s |\n", strings.Join(line, " | "))
			if n == 0 {
				fmt.Fprintf(&b, "|%s\n", strings.Repeat(" --- |", len(line)))
			}
		}
	}
	for _, n := range r.notes {
		fmt.Fprintf(&b, "\n%s\n", n)
	}
	fmt.Fprintf(&b, "\n%s", markEnd)
	b.Write(after)
	part := file + ".part"
	if err := os.WriteFile(part, b.Bytes(), 0o644); err != nil {
		return err
	}
	return os.Rename(part, file)
}

// loadAverage is the host's of the last minute: what else it was doing.
func loadAverage() string {
	data, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "unknown"
	}
	one, _, _ := strings.Cut(string(data), " ")
	return one
}

// describeHost says on what and when it was measured.
func (r *report) describeHost(ctx context.Context) string {
	say := func(name string, args ...string) string {
		out, err := exec.CommandContext(ctx, name, args...).Output()
		if err != nil {
			return "unknown"
		}
		line, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
		return line
	}
	field := func(file, name string) string {
		f, err := os.Open(file)
		if err != nil {
			return "unknown"
		}
		defer f.Close()
		for s := bufio.NewScanner(f); s.Scan(); {
			if key, value, ok := strings.Cut(s.Text(), ":"); ok && strings.TrimSpace(key) == name {
				return strings.TrimSpace(value)
			}
		}
		return "unknown"
	}
	cgroups := "version 1 (hybrid)"
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err == nil {
		cgroups = "version 2"
	}
	var kb int64
	if _, err := fmt.Sscanf(field("/proc/meminfo", "MemTotal"), "%d kB", &kb); err != nil {
		kb = 0
	}
	return fmt.Sprintf("Measured %s at commit %s by `make bench`: %d × %s, %s memory, Linux %s, control groups %s, %s, %s. Load average before it began: %s.",
		time.Now().UTC().Format("2006-01-02 15:04 MST"), say("git", "describe", "--tags", "--always", "--dirty"),
		runtime.NumCPU(), field("/proc/cpuinfo", "model name"), mb(kb<<10), say("uname", "-r"), cgroups, say("runc", "--version"), runtime.Version(), r.load)
}
