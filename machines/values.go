package machines

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strconv"
	"time"
)

// Duration is a time.Duration that is a string such as "1m30s" in JSON. It
// also reads a number, of nanoseconds, and takes null and "" for zero.
type Duration time.Duration

// MarshalJSON writes the duration as Go prints it.
func (d Duration) MarshalJSON() ([]byte, error) {
	return json.Marshal(time.Duration(d).String())
}

// UnmarshalJSON reads a Go duration string or a number of nanoseconds.
func (d *Duration) UnmarshalJSON(data []byte) error {
	if bytes.Equal(data, []byte("null")) {
		*d = 0
		return nil
	}
	if len(data) > 0 && data[0] == '"' {
		var s string
		if err := json.Unmarshal(data, &s); err != nil {
			return err
		}
		return d.parse(s)
	}
	n, err := strconv.ParseInt(string(data), 10, 64)
	if err == nil {
		*d = Duration(n)
		return nil
	}
	f, err := strconv.ParseFloat(string(data), 64)
	if err != nil || math.Abs(f) >= math.MaxInt64 {
		return fmt.Errorf("%s is neither a duration such as \"15s\" nor a number of nanoseconds", clip(string(data)))
	}
	*d = Duration(f)
	return nil
}

func (d *Duration) parse(s string) error {
	if s == "" {
		*d = 0
		return nil
	}
	v, err := time.ParseDuration(s)
	if err != nil {
		return fmt.Errorf("%q is not a duration such as \"15s\"", clip(s))
	}
	*d = Duration(v)
	return nil
}

// Autostop is what happens to a machine nobody needs just now. In JSON it is
// false, true or "suspend"; "off", "stop", "false" and "true" are read as well.
type Autostop string

// The values of Autostop. AutostopUnset is as good as off.
const (
	AutostopUnset   Autostop = ""
	AutostopOff     Autostop = "off"
	AutostopStop    Autostop = "stop"
	AutostopSuspend Autostop = "suspend"
)

// MarshalJSON writes the forms that every client understands.
func (a Autostop) MarshalJSON() ([]byte, error) {
	switch a {
	case AutostopStop:
		return []byte("true"), nil
	case AutostopSuspend:
		return []byte(`"suspend"`), nil
	}
	return []byte("false"), nil
}

// UnmarshalJSON reads every form that was ever in use.
func (a *Autostop) UnmarshalJSON(data []byte) error {
	switch string(data) {
	case "null", `""`:
		*a = AutostopUnset
	case "false", `"off"`, `"false"`:
		*a = AutostopOff
	case "true", `"stop"`, `"true"`:
		*a = AutostopStop
	case `"suspend"`:
		*a = AutostopSuspend
	default:
		return fmt.Errorf("autostop: %s is not one of off, stop, suspend", clip(string(data)))
	}
	return nil
}

// HeaderValues are what a header of an answer is set to. In JSON they are a
// string or a list of strings; false, which is an empty list that is not nil,
// removes the header.
type HeaderValues []string

// MarshalJSON writes the shortest form.
func (h HeaderValues) MarshalJSON() ([]byte, error) {
	switch {
	case h == nil:
		return []byte("null"), nil
	case len(h) == 0:
		return []byte("false"), nil
	case len(h) == 1:
		return json.Marshal(h[0])
	}
	return json.Marshal([]string(h))
}

// UnmarshalJSON reads false, a string or a list of strings.
func (h *HeaderValues) UnmarshalJSON(data []byte) error {
	var one string
	var list []string
	switch {
	case bytes.Equal(data, []byte("null")):
		*h = nil
	case bytes.Equal(data, []byte("false")):
		*h = HeaderValues{}
	case json.Unmarshal(data, &one) == nil:
		*h = HeaderValues{one}
	case json.Unmarshal(data, &list) == nil:
		*h = append(HeaderValues{}, list...)
	default:
		return fmt.Errorf("response header: %s is neither false nor a string nor a list of strings", clip(string(data)))
	}
	return nil
}

// Persist says what of a root file system outlives a stop: "never",
// "restart" or "always". It also reads the numbers 0 to 3 of older clients.
type Persist string

// UnmarshalJSON reads the names and the numbers.
func (p *Persist) UnmarshalJSON(data []byte) error {
	switch string(data) {
	case "null", `""`, `"none"`, "0":
		*p = ""
	case `"never"`, "1":
		*p = "never"
	case `"restart"`, "2":
		*p = "restart"
	case `"always"`, "3":
		*p = "always"
	default:
		return fmt.Errorf("%s is not one of never, restart, always", clip(string(data)))
	}
	return nil
}

// Signal is a signal's name, such as "SIGTERM". It also reads a number.
type Signal string

// UnmarshalJSON reads a name or a number; the number stays one, as text.
func (s *Signal) UnmarshalJSON(data []byte) error {
	if len(data) > 0 && data[0] != '"' {
		if bytes.Equal(data, []byte("null")) {
			*s = ""
			return nil
		}
		if _, err := strconv.Atoi(string(data)); err != nil {
			return errors.New("signal is neither a name such as \"SIGTERM\" nor a number")
		}
		*s = Signal(data)
		return nil
	}
	var name string
	if err := json.Unmarshal(data, &name); err != nil {
		return err
	}
	*s = Signal(name)
	return nil
}

// clip keeps messages short.
func clip(s string) string {
	if len(s) > 80 {
		return s[:80] + "..."
	}
	return s
}
