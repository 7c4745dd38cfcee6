package machines

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
)

// Error is an answer of the API that is not a success.
type Error struct {
	Status    int    // HTTP status
	Code      string // "name_taken", "insufficient_capacity", ...; often empty
	Message   string // for people
	RequestID string // of the call, for the platform's logs
}

// Error returns the message and the status.
func (e *Error) Error() string {
	s := e.Message
	if s == "" {
		s = http.StatusText(e.Status)
	}
	if e.RequestID != "" {
		return fmt.Sprintf("%s (status %d, request %s)", s, e.Status, e.RequestID)
	}
	return fmt.Sprintf("%s (status %d)", s, e.Status)
}

// StatusOf returns the HTTP status of the first Error in err's chain, or 0:
// the call never got an answer.
func StatusOf(err error) int {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Status
	}
	return 0
}

// maxErrorBody bounds what is read of an error's body.
const maxErrorBody = 64 << 10

func readError(resp *http.Response) error {
	e := &Error{Status: resp.StatusCode, RequestID: resp.Header.Get("Fly-Request-Id")}
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxErrorBody))
	if err != nil {
		return e
	}
	var body struct {
		Error, Message, Status, Code string
	}
	if json.Unmarshal(data, &body) != nil {
		e.Message = clip(strings.TrimSpace(string(data)))
		return e
	}
	e.Message, e.Code = body.Message, body.Status
	if e.Message == "" {
		e.Message = body.Error
	}
	if body.Code != "" {
		e.Code = body.Code
	}
	return e
}
