package roost

import (
	"errors"
	"fmt"
)

// Kind says what went wrong in a way that programs can act on. The API turns
// it into a status, the command line into an exit code.
type Kind uint8

// The kinds. An error without one is Internal.
const (
	Internal        Kind = iota // ours: logged in full, shown as "internal error"
	Invalid                     // the input can never work
	Unauthenticated             // no token, or none that is valid
	Forbidden                   // a valid token without the right
	NotFound                    // no such thing
	Conflict                    // somebody else holds or took it
	Precondition                // right request, wrong state
	Exhausted                   // a limit or a capacity is used up
	Unavailable                 // try again later
	Unimplemented               // known, not built yet
	Timeout                     // waited as long as asked for
	TooLarge                    // the input exceeds a size limit
)

var kindNames = [...]string{
	"internal", "invalid", "unauthenticated", "forbidden", "not_found", "conflict",
	"precondition", "exhausted", "unavailable", "unimplemented", "timeout", "too_large",
}

// String returns the kind's name as it travels between processes.
func (k Kind) String() string {
	if int(k) < len(kindNames) {
		return kindNames[k]
	}
	return "internal"
}

// ParseKind is the inverse of String; an unknown name is Internal.
func ParseKind(s string) Kind {
	for i, name := range kindNames {
		if s == name {
			return Kind(i)
		}
	}
	return Internal
}

// Error is an error with a kind. Message is one sentence for the user, lower
// case, without internals; Err is the cause, for the log.
type Error struct {
	Kind    Kind
	Code    string // a machine-readable code where the API documents one, such as "name_taken"
	Message string
	Err     error
}

// Error returns the message, or the cause where there is no message.
func (e *Error) Error() string {
	switch {
	case e.Message != "" && e.Err != nil:
		return e.Message + ": " + e.Err.Error()
	case e.Message != "":
		return e.Message
	case e.Err != nil:
		return e.Err.Error()
	}
	return e.Kind.String()
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// Errorf makes an Error of the given kind whose message is for the user.
func Errorf(kind Kind, format string, args ...any) *Error {
	return &Error{Kind: kind, Message: fmt.Sprintf(format, args...)}
}

// KindOf returns the kind of the first Error in err's chain, or Internal.
func KindOf(err error) Kind {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Kind
	}
	return Internal
}

// IsKind reports whether err has the given kind; a nil error has none.
func IsKind(err error, kind Kind) bool { return err != nil && KindOf(err) == kind }

// MessageOf returns what a user may read of err: the message of the first
// Error in its chain that has one, or "internal error".
func MessageOf(err error) string {
	for e, ok := errors.AsType[*Error](err); ok; e, ok = errors.AsType[*Error](e.Err) {
		if e.Message != "" {
			return e.Message
		}
	}
	return "internal error"
}

// Codes that one package sets and another acts on.
const (
	CodeNameTaken        = "name_taken"          // of an app or an organisation
	CodeCertRefused      = "certificate_refused" // or its hostname
	CodeHostnameTaken    = "hostname_taken"      // by another app
	CodeMachineNameTaken = "machine_name_taken"  // in its app
	CodeMachineExists    = "machine_exists"      // with that id
	CodeAddressTaken     = "address_taken"       // on that host
	CodeLeaseHeld        = "lease_held"          // by somebody else
	CodeReleaseRunning   = "release_in_progress" // of the same app
	CodeReleaseServes    = "release_serves"      // already: it cannot be cancelled
	CodeReleaseCancelled = "release_cancelled"   // before it could serve
	CodeNoRelease        = "no_release"          // the app has none yet
	CodeUnhealthy        = "unhealthy"           // a new version did not pass its checks
	CodeUnsupported      = "unsupported_field"   // known on Fly, not here
)

// CodeOf returns the code of the first Error in err's chain that has one, or "".
func CodeOf(err error) string {
	for e, ok := errors.AsType[*Error](err); ok; e, ok = errors.AsType[*Error](e.Err) {
		if e.Code != "" {
			return e.Code
		}
	}
	return ""
}
