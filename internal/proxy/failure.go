package proxy

import (
	"encoding/json"
	"fmt"
	"html/template"
	"net/http"
	"strconv"
	"strings"
)

// failure is an answer that the edge gives itself. Codes and statuses are
// those of the Fly docs' "Proxy errors" where they say some.
type failure struct {
	Status  int
	Code    string // "PR03"
	Message string // what happened, one sentence without capital and full stop
	Hint    string // what to do
	Retry   int    // seconds, for Retry-After; 0: none
	err     error
}

// statusClientClosed is logged when the client went away; nobody sees it.
const statusClientClosed = 499

func failf(status int, code, format string, args ...any) *failure {
	return &failure{Status: status, Code: code, Message: fmt.Sprintf(format, args...)}
}

func (f *failure) hint(format string, args ...any) *failure {
	f.Hint = fmt.Sprintf(format, args...)
	return f
}

// retryAfter is what clients are told to wait: most causes pass soon.
const retryAfter = 5 // seconds

func (f *failure) retry() *failure {
	f.Retry = retryAfter
	return f
}

func (f *failure) cause(err error) *failure {
	f.err = err
	return f
}

func (f *failure) Error() string { return f.Code + ": " + f.Message }

var page = template.Must(template.New("error").Parse(`<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">
<title>{{.Status}} {{.Title}}</title>
<style>body{font:16px/1.5 system-ui,sans-serif;max-width:38em;margin:15vh auto;padding:0 1em;color:#222;background:#fff}
small,code{color:#666}@media(prefers-color-scheme:dark){body{color:#ddd;background:#161616}small,code{color:#999}}</style></head>
<body><h1>{{.Status}} {{.Title}}</h1><p>{{.Message}}.</p>{{if .Hint}}<p>{{.Hint}}</p>{{end}}
<p><small>roost{{if .Code}} · {{.Code}}{{end}} · request {{.ID}}</small></p></body></html>
`))

// write answers with f.
func (f *failure) write(w http.ResponseWriter, r *http.Request, id string) int {
	h := w.Header()
	if f.Code != "" {
		h.Set("Roost-Error", f.Code)
	}
	if f.Retry > 0 {
		h.Set("Retry-After", strconv.Itoa(f.Retry))
	}
	h.Set("Cache-Control", "no-store")
	message := f.Message
	if message != "" {
		message = strings.ToUpper(message[:1]) + message[1:]
	}
	var b strings.Builder
	switch accepts(r.Header.Get("Accept")) {
	case "html":
		h.Set("Content-Type", "text/html; charset=utf-8")
		_ = page.Execute(&b, struct {
			Status                         int
			Title, Message, Hint, Code, ID string
		}{f.Status, http.StatusText(f.Status), message, f.Hint, f.Code, id})
	case "json":
		h.Set("Content-Type", "application/json")
		e := json.NewEncoder(&b)
		e.SetEscapeHTML(false)
		_ = e.Encode(struct {
			Error     string `json:"error"`
			Code      string `json:"code,omitempty"`
			Hint      string `json:"hint,omitempty"`
			RequestID string `json:"request_id"`
		}{f.Message, f.Code, f.Hint, id})
	default:
		h.Set("Content-Type", "text/plain; charset=utf-8")
		fmt.Fprintf(&b, "%d %s: %s.\n", f.Status, http.StatusText(f.Status), f.Message)
		if f.Hint != "" {
			fmt.Fprintln(&b, f.Hint)
		}
		fmt.Fprintf(&b, "(%s)\n", strings.TrimPrefix(f.Code+", request "+id, ", "))
	}
	h.Set("Content-Length", strconv.Itoa(b.Len()))
	w.WriteHeader(f.Status)
	n, _ := w.Write([]byte(b.String())) // the client went away: nobody to tell
	return n
}

// accepts picks the form of an error body. Browsers name text/html first.
func accepts(accept string) string {
	html, js := strings.Index(accept, "text/html"), strings.Index(accept, "json")
	switch {
	case html >= 0 && (js < 0 || html < js):
		return "html"
	case js >= 0:
		return "json"
	}
	return "text"
}
