package registry

import (
	"encoding/json"
	"errors"
	"net/http"
	"time"

	root "github.com/roost-run/roost"
)

var noTime time.Time // content has no date: its digest is its version

// apiError is an error as the specification writes it.
type apiError struct {
	status  int
	code    string
	message string
}

func (e apiError) Error() string { return e.message }

// as gives an error that has a kind the code that the specification wants.
func as(err error, code string) error {
	if e, ok := errors.AsType[apiError](err); ok {
		return e
	}
	status := http.StatusInternalServerError
	switch root.KindOf(err) {
	case root.NotFound:
		status = http.StatusNotFound
	case root.Invalid:
		status = http.StatusBadRequest
	case root.Conflict:
		status = http.StatusConflict
	case root.TooLarge:
		status = http.StatusRequestEntityTooLarge
	default:
		return err
	}
	return apiError{status, code, root.MessageOf(err)}
}

func tooLarge(err error) error {
	if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return apiError{http.StatusRequestEntityTooLarge, "SIZE_INVALID", "the request is larger than the registry accepts"}
	}
	return err
}

// fail answers with err; what is not the client's doing is logged.
func (h *handler) fail(w http.ResponseWriter, r *http.Request, err error) {
	e, ok := errors.AsType[apiError](err)
	if !ok {
		switch root.KindOf(err) {
		case root.Unauthenticated:
			w.Header().Set("WWW-Authenticate", `Basic realm="roost"`)
			e = apiError{http.StatusUnauthorized, "UNAUTHORIZED", root.MessageOf(err)}
		case root.Forbidden:
			e = apiError{http.StatusForbidden, "DENIED", root.MessageOf(err)}
		case root.NotFound:
			e = apiError{http.StatusNotFound, "NAME_UNKNOWN", root.MessageOf(err)}
		default:
			if r.Context().Err() == nil {
				h.log.Error("registry request", "method", r.Method, "path", r.URL.Path, "err", err)
			}
			e = apiError{http.StatusInternalServerError, "UNKNOWN", root.MessageOf(err)}
		}
	}
	type item struct {
		Code    string `json:"code"`
		Message string `json:"message"`
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(e.status)
	_ = json.NewEncoder(w).Encode(map[string][]item{"errors": {{e.code, e.message}}}) // the client went away: nobody to tell
}

func writeJSON(w http.ResponseWriter, v any) error {
	w.Header().Set("Content-Type", "application/json")
	return json.NewEncoder(w).Encode(v)
}
