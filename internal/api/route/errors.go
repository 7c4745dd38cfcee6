package route

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"

	root "github.com/roost-run/roost"
)

// CodeRateLimited, with kind Exhausted, is rendered as 429; others of root's
// codes change how an error is rendered, too.
const CodeRateLimited = "rate_limited"

// status is the only place where a kind becomes a status.
func status(kind root.Kind, code string) int {
	switch kind {
	case root.Invalid:
		if code == root.CodeCertRefused {
			return http.StatusUnprocessableEntity
		}
		return http.StatusBadRequest
	case root.Unauthenticated:
		return http.StatusUnauthorized
	case root.Forbidden:
		return http.StatusForbidden
	case root.NotFound:
		return http.StatusNotFound
	case root.Conflict:
		if code == root.CodeNameTaken || code == root.CodeHostnameTaken { // of an app; that of a machine is 409
			return http.StatusUnprocessableEntity
		}
		return http.StatusConflict
	case root.Precondition:
		return http.StatusPreconditionFailed
	case root.Exhausted:
		if code == CodeRateLimited {
			return http.StatusTooManyRequests
		}
		return http.StatusUnprocessableEntity
	case root.Unavailable:
		return http.StatusServiceUnavailable
	case root.Unimplemented:
		if code == root.CodeUnsupported { // a 5xx would be tried again
			return http.StatusUnprocessableEntity
		}
		return http.StatusNotImplemented
	case root.Timeout:
		return http.StatusRequestTimeout
	case root.TooLarge:
		return http.StatusRequestEntityTooLarge
	}
	return http.StatusInternalServerError
}

// prefix is the category with which Fly begins the texts of a kind.
func prefix(kind root.Kind) string {
	switch kind {
	case root.Precondition:
		return "failed_precondition: "
	case root.Timeout:
		return "deadline_exceeded: "
	}
	return ""
}

// Failure is an error's document. Message repeats Error where older clients
// read only that.
type Failure struct {
	Error   string `json:"error"`
	Status  string `json:"status,omitempty"`
	Message string `json:"message,omitempty"`
	Code    string `json:"code,omitempty"`
}

// Render turns an error into a status and a document.
func Render(err error) (int, Failure) {
	kind, code := root.KindOf(err), ""
	if e, ok := errors.AsType[*root.Error](err); ok {
		code = e.Code
	} else if errors.Is(err, context.DeadlineExceeded) {
		kind, err = root.Timeout, root.Errorf(root.Timeout, "the platform did not finish in time; the action may have happened")
	}
	if kind == root.Unauthenticated {
		code = "" // why exactly is for people, in the text
	}
	f := Failure{Error: prefix(kind) + root.MessageOf(err), Status: code}
	if kind == root.Internal {
		f = Failure{Error: "internal error", Status: "unknown"}
	}
	if code == root.CodeLeaseHeld {
		f = Failure{Error: f.Error, Message: f.Error, Status: "error", Code: "invalid"}
	}
	return status(kind, code), f
}

// WriteError answers with an error.
func WriteError(w http.ResponseWriter, err error) int {
	status, f := Render(err)
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(f) // the client went away: nobody to tell
	return status
}
