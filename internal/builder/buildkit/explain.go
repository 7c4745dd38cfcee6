package buildkit

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/solver/errdefs"
	digest "github.com/opencontainers/go-digest"

	root "github.com/roost-run/roost"
)

// CodeBuildFailed marks a build whose Dockerfile or program is at fault.
const CodeBuildFailed = "build_failed"

const (
	keepLines = 20      // of a step's output, for the message of its failure
	keepLine  = 1 << 10 // bytes of one
)

// story is what a build has told so far.
type story struct {
	steps map[digest.Digest]*step
	order []digest.Digest
}

type step struct {
	name string
	err  string
	last []string // lines of output
	part string   // a line that has not ended
}

func newStory() *story { return &story{steps: map[digest.Digest]*step{}} }

func (s *story) add(news *client.SolveStatus) {
	for _, v := range news.Vertexes {
		st := s.step(v.Digest)
		st.name = v.Name
		if v.Error != "" {
			st.err = v.Error
		}
	}
	for _, l := range news.Logs {
		s.step(l.Vertex).write(string(l.Data))
	}
}

func (s *story) step(d digest.Digest) *step {
	st, ok := s.steps[d]
	if !ok {
		st = &step{}
		s.steps[d] = st
		s.order = append(s.order, d)
	}
	return st
}

func (s *step) write(text string) {
	text = s.part + text
	for {
		line, rest, ok := strings.Cut(text, "\n")
		if !ok {
			break
		}
		text = rest
		s.last = append(s.last, clip(strings.TrimRight(line, "\r")))
		if len(s.last) > keepLines {
			s.last = slices.Delete(s.last, 0, len(s.last)-keepLines)
		}
	}
	s.part = clip(text)
}

func (s *step) output() []string {
	if s.part != "" {
		return append(slices.Clone(s.last), s.part)
	}
	return s.last
}

func clip(line string) string {
	if len(line) > keepLine {
		return line[:keepLine] + "..."
	}
	return line
}

// failed returns the step that failed first, nil if none did.
func (s *story) failed() *step {
	var cancelled *step
	for _, d := range s.order {
		st := s.steps[d]
		switch {
		case st.err == "":
		case strings.Contains(st.err, "context canceled"):
			cancelled = st
		default:
			return st
		}
	}
	return cancelled
}

var (
	stepNumber    = regexp.MustCompile(`^\[[^\]]*\] `)
	noTarget      = regexp.MustCompile(`target stage "?([^" ]+)"? could not be found`)
	exitCode      = regexp.MustCompile(`did not complete successfully: exit code: (\d+)`)
	noFile        = regexp.MustCompile(`failed to calculate checksum of ref \S+: "/?([^"]+)": not found`)
	denied        = regexp.MustCompile(`"?docker-image://([^" ]+)"? denied by policy`)
	noEntitlement = regexp.MustCompile(`entitlement (\S+) is not allowed|granting entitlement (\S+)`)
	noSecret      = regexp.MustCompile(`secret ([^: ]+): not found`)
	stageLine     = regexp.MustCompile(`(?im)^\s*FROM\s+(?:--\S+\s+)*\S+\s+AS\s+(\S+)`)
	solvePrefix   = regexp.MustCompile(`^(failed to solve: |rpc error: code = \w+ desc = |failed to load cache key: )+`)
)

// explain makes BuildKit's error one for people: the step, the line of the
// Dockerfile, and the last of its output.
func (e *Engine) explain(err error, b Build, seen *story, oom bool) error {
	text := solvePrefix.ReplaceAllString(err.Error(), "")
	kind, code := root.Invalid, CodeBuildFailed
	var m strings.Builder
	exit := exitCode.FindStringSubmatch(text)
	st := seen.failed()
	switch {
	case oom:
		kind, code = root.Exhausted, "build_out_of_memory"
		m.WriteString("out of memory: a step of the build wanted more than builds may use together")
		if e.o.Memory > 0 {
			fmt.Fprintf(&m, " (%s)", e.o.Memory)
		}
		m.WriteString("; raise build_memory in the server's configuration, or let the step use less")
	case exit != nil && st != nil:
		fmt.Fprintf(&m, "%s failed with exit code %s", stepNumber.ReplaceAllString(st.name, ""), exit[1])
	case noTarget.MatchString(text):
		fmt.Fprintf(&m, "%s has no stage %q", b.Name, noTarget.FindStringSubmatch(text)[1])
		if names := stages(b.Dockerfile); len(names) > 0 {
			fmt.Fprintf(&m, ": it has %s", strings.Join(names, ", "))
		} else {
			m.WriteString(": none of its stages has a name")
		}
	case noSecret.MatchString(text):
		name := noSecret.FindStringSubmatch(text)[1]
		fmt.Fprintf(&m, "the build needs the secret %s: give it with --build-secret %s=VALUE, or let it read the app's with --app-secret %s", name, name, name)
	case noFile.MatchString(text):
		fmt.Fprintf(&m, "%s is not in the build context, or an ignore file leaves it out: not found", noFile.FindStringSubmatch(text)[1])
	case denied.MatchString(text):
		kind, code = root.Forbidden, ""
		fmt.Fprintf(&m, "the image %s belongs to another organisation", denied.FindStringSubmatch(text)[1])
	case noEntitlement.MatchString(text):
		fmt.Fprintf(&m, "a step asks for %s, which builds do not get here", noEntitlement.FindStringSubmatch(text)[1])
	default:
		if known := e.bases.why(err.Error()); known != nil {
			kind, code, text = root.KindOf(known), "", root.MessageOf(known)+noBase
		} else if strings.Contains(text, "no space left on device") {
			kind, code, text = root.Exhausted, "", "the disk is full: remove images that are not needed, or enlarge it"
		}
		m.WriteString(text)
	}
	if where := source(err, b.Name); where != "" {
		m.WriteString("\n" + where)
	}
	if st != nil {
		if out := st.output(); len(out) > 0 {
			m.WriteString("\nLast output:\n  " + strings.Join(out, "\n  "))
		}
	}
	return &root.Error{Kind: kind, Code: code, Message: m.String(), Err: err}
}

// noBase is what helps where a base image cannot be had.
const noBase = `

A base image comes from its registry, or a mirror of it that [[registries]] of the server's configuration names,
with the credentials there. Without any of them, scripts/base-image of Roost's source makes debian:bookworm-slim from
Debian's packages, and "roost image load" loads an archive of any other.`

// stages lists the names of a Dockerfile's stages.
func stages(dockerfile []byte) []string {
	var names []string
	for _, m := range stageLine.FindAllSubmatch(dockerfile, -1) {
		names = append(names, string(m[1]))
	}
	return names
}

// source shows the lines of the Dockerfile that an error is about.
func source(err error, name string) string {
	const around = 2
	var b strings.Builder
	for _, s := range errdefs.Sources(err) {
		if s.Info == nil || len(s.Ranges) == 0 {
			continue
		}
		lines := strings.Split(string(s.Info.Data), "\n")
		first, last := int(s.Ranges[0].Start.Line), int(s.Ranges[0].End.Line)
		for _, r := range s.Ranges {
			first, last = min(first, int(r.Start.Line)), max(last, int(r.End.Line))
		}
		if first < 1 || first > len(lines) {
			continue
		}
		last = min(max(last, first), len(lines))
		fmt.Fprintf(&b, "%s:%d", name, first)
		for n := max(1, first-around); n <= min(len(lines), last+around); n++ {
			mark := " "
			if n >= first && n <= last {
				mark = ">"
			}
			fmt.Fprintf(&b, "\n%4d %s %s", n, mark, strings.TrimRight(lines[n-1], "\r"))
		}
		break // the innermost is the one to look at
	}
	return b.String()
}
