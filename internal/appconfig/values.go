package appconfig

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Duration is a time.Duration that prints as a person would write it: "5m",
// not "5m0s". What a bare number means depends on the setting.
type Duration time.Duration

// MarshalText implements encoding.TextMarshaler, for JSON and TOML.
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// String returns the shortest form: "1h", "1m30s", "250ms".
func (d Duration) String() string {
	s := time.Duration(d).String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// read takes a Go duration string, or a number of the unit; the note is for who
// left that to us.
func (d *Duration) read(v any, unitName string) (note string, err error) {
	unit, known := time.Second, false
	switch unitName {
	case "ms":
		unit, known = time.Millisecond, true
	case "s":
		known = true
	}
	number := func(n float64) error {
		if n > float64(1<<53) || n < -float64(1<<53) || n*float64(unit) > float64(1<<62) || n*float64(unit) < -float64(1<<62) {
			return fmt.Errorf("%v is out of range", n)
		}
		*d = Duration(n * float64(unit))
		if !known {
			note = fmt.Sprintf("%v without a unit is taken as seconds: write %q", n, d.String())
		}
		return nil
	}
	switch v := v.(type) {
	case string:
		parsed, err := time.ParseDuration(strings.TrimSpace(v))
		if err == nil {
			*d = Duration(parsed)
			return "", nil
		}
		if n, err := strconv.ParseInt(v, 10, 64); err == nil && known {
			return note, number(float64(n))
		}
		return "", fmt.Errorf("%q is not a duration such as \"15s\" or \"1m30s\"", clip(v))
	case int64:
		return note, number(float64(v))
	case float64:
		return note, number(v)
	}
	return "", fmt.Errorf("want a duration such as \"15s\", got %s", kindOf(v))
}

// Memory is an amount of memory in MB. Bare numbers are MB, units are binary.
type Memory int

// MarshalText implements encoding.TextMarshaler.
func (m Memory) MarshalText() ([]byte, error) {
	if m > 0 && m%1024 == 0 {
		return fmt.Appendf(nil, "%dgb", m/1024), nil
	}
	return fmt.Appendf(nil, "%dmb", m), nil
}

func (m *Memory) read(v any) error {
	n, err := size(v, "mb")
	if err != nil {
		return fmt.Errorf("%w: write an amount of memory such as \"512mb\" or \"1gb\"", err)
	}
	*m = Memory(n >> 20)
	return nil
}

// VolumeSize is the size of a volume in GB; bare numbers are GB.
type VolumeSize int

// MarshalText implements encoding.TextMarshaler.
func (s VolumeSize) MarshalText() ([]byte, error) { return fmt.Appendf(nil, "%dGB", s), nil }

func (s *VolumeSize) read(v any) error {
	n, err := size(v, "gb")
	if err != nil {
		return fmt.Errorf("%w: write a size such as \"10GB\"", err)
	}
	*s = VolumeSize(n >> 30)
	return nil
}

// size reads an amount in bytes, of the given unit unless it names its own.
func size(v any, unit string) (int64, error) {
	var s string
	switch v := v.(type) {
	case string:
		s = strings.ToLower(strings.TrimSpace(v))
	case int64:
		s = strconv.FormatInt(v, 10)
	case float64:
		s = strconv.FormatFloat(v, 'f', -1, 64)
	default:
		return 0, fmt.Errorf("got %s", kindOf(v))
	}
	digits := strings.TrimRight(s, "kmgtib ")
	if u := strings.TrimSpace(s[len(digits):]); u != "" {
		unit = u
	}
	n, err := strconv.ParseFloat(digits, 64)
	if err != nil || n != n {
		return 0, fmt.Errorf("%q is not a size", clip(s))
	}
	shift := map[string]int{"b": 0, "k": 10, "kb": 10, "kib": 10, "m": 20, "mb": 20, "mib": 20, "g": 30, "gb": 30, "gib": 30, "t": 40, "tb": 40, "tib": 40}
	by, ok := shift[unit]
	if !ok {
		return 0, fmt.Errorf("%q is not a size", clip(s))
	}
	if n *= float64(int64(1) << by); n < 0 || n > float64(int64(1)<<60) {
		return 0, fmt.Errorf("%q is out of range", clip(s))
	}
	return int64(n), nil
}

// Autostop is "off", "stop" or "suspend"; "" is not set. The file may say
// false and true, too.
type Autostop string

func (a *Autostop) read(v any) error {
	switch v {
	case false, "off", "false":
		*a = "off"
	case true, "stop", "true":
		*a = "stop"
	case "suspend":
		*a = "suspend"
	default:
		return fmt.Errorf("%s is not one of \"off\", \"stop\", \"suspend\"", show(v))
	}
	return nil
}

func (e *Env) read(v any) error {
	t, ok := v.(*table)
	if !ok {
		return fmt.Errorf("want a table of names and values, got %s", kindOf(v))
	}
	*e = make(Env, len(t.keys))
	for _, key := range t.keys {
		s, ok := scalar(t.m[key].val)
		if !ok {
			return fmt.Errorf("%s: want a string, got %s", clip(key), kindOf(t.m[key].val))
		}
		(*e)[key] = s
	}
	return nil
}

// scalar prints a value that is neither a list nor a table.
func scalar(v any) (string, bool) {
	switch v := v.(type) {
	case string:
		return v, true
	case bool, int64:
		return fmt.Sprint(v), true
	case float64:
		return strconv.FormatFloat(v, 'f', -1, 64), true
	}
	return "", false
}

// show prints a value for a message.
func show(v any) string {
	if s, ok := scalar(v); ok {
		if _, text := v.(string); text {
			return strconv.Quote(clip(s))
		}
		return clip(s)
	}
	return kindOf(v)
}

// kindOf names what v is, for a message.
func kindOf(v any) string {
	switch v := v.(type) {
	case nil:
		return "nothing"
	case string:
		return "the text " + strconv.Quote(clip(v))
	case bool, int64, float64:
		return fmt.Sprint(v)
	case []*node:
		return "a list"
	case *table:
		return "a table"
	case json.Number:
		return v.String()
	}
	return "a date"
}

func clip(s string) string {
	const most = 80
	if len(s) > most {
		return s[:most] + "..."
	}
	return s
}
