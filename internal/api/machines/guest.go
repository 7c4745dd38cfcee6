package machines

import (
	"errors"
	"net"
	"net/http"
	"strings"
	"time"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/api/route"
	"github.com/roost-run/roost/internal/control"
	"github.com/roost-run/roost/internal/orders"
	public "github.com/roost-run/roost/machines"
)

func (h *handlers) exec(w http.ResponseWriter, r *http.Request) error {
	app, id, err := route.Machine(r)
	if err != nil {
		return err
	}
	var in public.ExecRequest
	if err := route.ReadJSON(r, &in, false); err != nil {
		return err
	}
	if in.Container != "" {
		return &root.Error{Kind: root.Unimplemented, Code: root.CodeUnsupported, Message: "container: a machine runs one image; leave it out"}
	}
	args := in.Command
	if len(args) == 0 {
		if args, err = splitWords(in.Cmd); err != nil {
			return root.Errorf(root.Invalid, "cmd: %v", err)
		}
	}
	if len(args) == 0 {
		return root.Errorf(root.Invalid, "command is missing: send {\"command\": [\"ls\", \"-l\"]}")
	}
	if in.Timeout < 0 || in.Timeout > maxExec {
		return root.Errorf(root.Invalid, "timeout: %d is not a number of seconds from 1 to %d", in.Timeout, maxExec)
	}
	res, err := h.Machines.Exec(r.Context(), route.Actor(r), app, id, r.Header.Get(nonceHeader),
		control.ExecRequest{Args: args, Stdin: in.Stdin, Timeout: time.Duration(in.Timeout) * time.Second})
	if err != nil {
		return err
	}
	return route.WriteJSON(w, http.StatusOK, public.ExecReply{Stdout: res.Stdout, Stderr: res.Stderr, ExitCode: res.Code, ExitSignal: res.Signal})
}

// maxExec bounds one exec, in seconds; longer work belongs into a machine of its own.
const maxExec = int(control.MaxExecTimeout / time.Second)

// splitWords splits a command line as a shell does: quotes and backslashes,
// but no expansion of any kind.
func splitWords(s string) ([]string, error) {
	var words []string
	var word strings.Builder
	in, quote := false, byte(0)
	for i := 0; i < len(s); i++ {
		c := s[i]
		switch {
		case quote == '\'' && c != '\'':
			word.WriteByte(c)
		case quote == '"' && c == '\\' && i+1 < len(s) && strings.IndexByte("\\\"$`", s[i+1]) >= 0:
			i++
			word.WriteByte(s[i])
		case quote != 0 && c == quote:
			quote = 0
		case quote != 0:
			word.WriteByte(c)
		case c == '\'' || c == '"':
			quote, in = c, true
		case c == '\\':
			if i++; i == len(s) {
				return nil, errors.New("it ends with a backslash")
			}
			word.WriteByte(s[i])
			in = true
		case c == ' ' || c == '\t' || c == '\n' || c == '\r':
			if in {
				words = append(words, word.String())
				word.Reset()
				in = false
			}
		default:
			word.WriteByte(c)
			in = true
		}
	}
	if quote != 0 {
		return nil, errors.New("a quote is not closed")
	}
	if in {
		words = append(words, word.String())
	}
	return words, nil
}

func (h *handlers) processes(w http.ResponseWriter, r *http.Request) error {
	app, id, err := route.Machine(r)
	if err != nil {
		return err
	}
	in, err := h.Machines.Inspect(r.Context(), route.Actor(r), app, id)
	if err != nil {
		return err
	}
	return route.WriteJSON(w, http.StatusOK, fromInspection(in, time.Now()))
}

func fromInspection(in orders.Inspection, now time.Time) []public.ProcessStat {
	out := make([]public.ProcessStat, 0, len(in.Processes))
	for _, p := range in.Processes {
		stat := public.ProcessStat{
			PID: p.PID, Command: p.Command, Directory: p.Directory,
			CPU: uint64(p.CPU.Milliseconds()), RSS: uint64(max(p.RSS, 0)), ListenSockets: []public.ListenSocket{},
		}
		if !p.StartedAt.IsZero() {
			stat.Stime, stat.Rtime = uint64(max(p.StartedAt.Unix(), 0)), uint64(max(now.Sub(p.StartedAt), 0)/time.Second)
		}
		for _, l := range p.Listens {
			if _, _, err := net.SplitHostPort(l.Address); err == nil { // clients parse it so
				stat.ListenSockets = append(stat.ListenSockets, public.ListenSocket{Proto: l.Proto, Address: l.Address})
			}
		}
		out = append(out, stat)
	}
	return out
}

func (h *handlers) metadata(w http.ResponseWriter, r *http.Request) error {
	app, id, err := route.Machine(r)
	if err != nil {
		return err
	}
	values, err := h.Machines.Metadata(r.Context(), route.Actor(r), app, id)
	if err != nil {
		return err
	}
	if values == nil {
		values = map[string]string{}
	}
	return route.WriteJSON(w, http.StatusOK, values)
}

func (h *handlers) patchMetadata(w http.ResponseWriter, r *http.Request) error {
	var in struct {
		Metadata map[string]*string `json:"metadata"`
		Version  string             `json:"machine_version"`
	}
	if err := route.ReadJSON(r, &in, false); err != nil {
		return err
	}
	return h.writeMetadata(w, r, in.Version, in.Metadata)
}

func (h *handlers) getMetadata(w http.ResponseWriter, r *http.Request) error {
	app, id, err := route.Machine(r)
	if err != nil {
		return err
	}
	values, err := h.Machines.Metadata(r.Context(), route.Actor(r), app, id)
	if err != nil {
		return err
	}
	value, ok := values[r.PathValue("key")]
	if !ok {
		return root.Errorf(root.NotFound, "metadata %q not found", route.Clip(r.PathValue("key")))
	}
	return route.WriteJSON(w, http.StatusOK, map[string]string{"value": value})
}

func (h *handlers) setMetadata(w http.ResponseWriter, r *http.Request) error {
	var in struct {
		Value string `json:"value"`
	}
	if err := route.ReadJSON(r, &in, false); err != nil {
		return err
	}
	return h.writeMetadata(w, r, "", map[string]*string{r.PathValue("key"): &in.Value})
}

func (h *handlers) deleteMetadata(w http.ResponseWriter, r *http.Request) error {
	return h.writeMetadata(w, r, "", map[string]*string{r.PathValue("key"): nil})
}

func (h *handlers) writeMetadata(w http.ResponseWriter, r *http.Request, version string, values map[string]*string) error {
	app, id, err := route.Machine(r)
	if err != nil {
		return err
	}
	if err := h.Machines.SetMetadata(r.Context(), route.Actor(r), app, id, version, values); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (h *handlers) regions(w http.ResponseWriter, r *http.Request) error {
	list := []public.Region{}
	for _, code := range h.Hosts.Regions(r.Context()) {
		list = append(list, public.Region{Code: string(code), Name: string(code)})
	}
	return route.WriteJSON(w, http.StatusOK, map[string]any{"nearest": h.Region, "regions": list})
}

func (h *handlers) currentToken(w http.ResponseWriter, r *http.Request) error {
	a := route.Actor(r)
	token := map[string]any{"token_id": a.TokenID, "organization": a.Org, "org_slug": a.Org, "apps": []root.AppName{}, "user": a.Name}
	if a.App != "" {
		token["apps"] = []root.AppName{a.App}
	}
	if a.Machine != "" {
		token["restricted_to_machine"], token["source_machine_id"] = a.Machine, a.Machine
	}
	return route.WriteJSON(w, http.StatusOK, map[string]any{"tokens": []any{token}})
}
