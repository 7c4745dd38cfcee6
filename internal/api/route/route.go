// Package route is what the surfaces of the API share: a row of the route
// table, reading a request, and rendering an answer or an error. It knows no
// route; api builds the mux from the rows that the surfaces give it.
package route

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strconv"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/auth"
	"github.com/roost-run/roost/internal/wire"
)

// Route is a row of the table.
type Route struct {
	Method     string
	Pattern    string          // as http.ServeMux has it: "/v1/apps/{app}"
	Permission auth.Permission // what the caller must be allowed; control checks it on the thing itself
	Handler    Handler
	// Body bounds the request's body; 0 is DefaultBody, negative unbounded
	// (archives, which the handler streams).
	Body int64
}

// Handler answers a request or returns why it cannot. An error after the
// first byte of the answer is only logged.
type Handler func(w http.ResponseWriter, r *http.Request) error

// DefaultBody bounds a JSON document: the largest is a machine config with files.
const DefaultBody = 16 << 20

type requestIDKey struct{}

// WithRequestID keeps the request's id for logs and errors.
func WithRequestID(ctx context.Context, id string) context.Context {
	return context.WithValue(ctx, requestIDKey{}, id)
}

// RequestID returns the request's id.
func RequestID(ctx context.Context) string {
	id, _ := ctx.Value(requestIDKey{}).(string)
	return id
}

// Actor returns who calls. The mux let nobody through without one.
func Actor(r *http.Request) auth.Actor {
	a, _ := auth.ActorFrom(r.Context())
	return a
}

// App returns the app that the path names.
func App(r *http.Request) (root.AppName, error) {
	app, err := root.ParseAppName(r.PathValue("app"))
	if err != nil {
		// No app can have such a name, so none does: clients ask to find out.
		return "", &root.Error{Kind: root.NotFound, Message: "app not found: " + root.MessageOf(err)}
	}
	return app, nil
}

// Machine returns the app and the machine that the path names.
func Machine(r *http.Request) (root.AppName, root.MachineID, error) {
	app, err := App(r)
	if err != nil {
		return "", "", err
	}
	id, err := root.ParseMachineID(r.PathValue("machine"))
	return app, id, err
}

// ReadBody returns the whole body.
func ReadBody(r *http.Request) ([]byte, error) {
	data, err := io.ReadAll(r.Body)
	if mbe, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return nil, root.Errorf(root.TooLarge, "the request's body is larger than %s", root.Bytes(mbe.Limit))
	}
	if err != nil {
		return nil, &root.Error{Kind: root.Invalid, Message: "the request's body ended early", Err: err}
	}
	return data, nil
}

// ReadJSON decodes the body into v; an empty one is an error unless optional.
func ReadJSON(r *http.Request, v any, optional bool) error {
	data, err := ReadBody(r)
	if err != nil || optional && len(data) == 0 {
		return err
	}
	return wire.Decode(data, v)
}

// WriteJSON answers with a document.
func WriteJSON(w http.ResponseWriter, status int, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, err = w.Write(append(data, '\n'))
	return err
}

// OK answers {"ok":true}.
func OK(w http.ResponseWriter) error {
	return WriteJSON(w, http.StatusOK, map[string]bool{"ok": true})
}

// Bool reads a boolean of the query in Go's forms and Python's; absent or
// empty is false.
func Bool(q url.Values, name string) (bool, error) {
	s := q.Get(name)
	if s == "" {
		return false, nil
	}
	v, err := strconv.ParseBool(s) // reads True and False too
	if err != nil {
		return false, root.Errorf(root.Invalid, "query %s: %q is neither true nor false", name, Clip(s))
	}
	return v, nil
}

// Int reads a number of the query within bounds; absent or empty is absent.
func Int(q url.Values, name string, least, most, absent int) (int, error) {
	s := q.Get(name)
	if s == "" {
		return absent, nil
	}
	v, err := strconv.Atoi(s)
	if err != nil || v < least || v > most {
		return 0, root.Errorf(root.Invalid, "query %s: %q is not a whole number from %d to %d", name, Clip(s), least, most)
	}
	return v, nil
}

// Clip keeps hostile input out of messages.
func Clip(s string) string {
	if len(s) > 80 {
		return s[:80] + "..."
	}
	return s
}
