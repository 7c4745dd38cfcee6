package appconfig

import (
	"fmt"
	"math"
	"reflect"
	"slices"
	"strings"

	"github.com/agext/levenshtein"
)

// reader is a type that reads values in its own way.
type reader interface{ read(v any) error }

// field is what a struct's tags say of a setting.
type field struct {
	name  string
	unit  string // of bare numbers in durations
	index []int
}

// fieldsOf lists the settings of a section's struct.
func fieldsOf(t reflect.Type) []field {
	var list []field
	for _, f := range reflect.VisibleFields(t) {
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if name == "" || name == "-" {
			continue
		}
		list = append(list, field{name: name, unit: f.Tag.Get("unit"), index: f.Index})
	}
	return list
}

// decoder fills a Config from a tree and notes what does not fit, all of it.
type decoder struct {
	problems  Problems
	positions map[string]Position
}

func (d *decoder) problem(n *node, path string, p Problem) {
	p.Position, p.Path = n.pos, path
	d.problems = append(d.problems, p)
}

// decode reads n into v, which is settable.
func (d *decoder) decode(n *node, path string, v reflect.Value, f field) {
	if n.pos != (Position{}) {
		d.positions[path] = n.pos
	}
	if n.val == nil { // null is as good as absent
		return
	}
	switch r := v.Addr().Interface().(type) {
	case *Duration:
		note, err := r.read(n.val, f.unit)
		if note != "" {
			d.problem(n, path, Problem{Message: f.name + ": " + note, Warning: true})
		}
		if err != nil {
			d.problem(n, path, Problem{Message: f.name + ": " + err.Error()})
		}
		return
	case reader:
		if t, ok := n.val.(*table); ok {
			for _, key := range t.keys {
				d.positions[join(path, key)] = t.m[key].pos
			}
		}
		if err := r.read(n.val); err != nil {
			d.problem(n, path, Problem{Message: f.name + ": " + err.Error()})
		}
		return
	}
	wrong := func(want string) {
		d.problem(n, path, Problem{Message: fmt.Sprintf("%s: want %s, got %s", f.name, want, kindOf(n.val))})
	}
	switch v.Kind() {
	case reflect.Pointer:
		p := reflect.New(v.Type().Elem())
		before := len(d.problems.Errors())
		d.decode(n, path, p.Elem(), f)
		if p.Elem().Kind() == reflect.Struct || len(d.problems.Errors()) == before {
			v.Set(p)
		}
	case reflect.Struct:
		t, ok := n.val.(*table)
		if !ok {
			wrong("a table")
			return
		}
		d.section(t, path, v)
	case reflect.Map:
		t, ok := n.val.(*table)
		if !ok {
			wrong("a table")
			return
		}
		v.Set(reflect.MakeMapWithSize(v.Type(), len(t.keys)))
		for _, key := range t.keys {
			item := reflect.New(v.Type().Elem()).Elem()
			d.decode(t.m[key], join(path, key), item, field{name: key, unit: f.unit})
			v.SetMapIndex(reflect.ValueOf(key), item)
		}
	case reflect.Slice:
		list, ok := n.val.([]*node)
		if !ok && v.Type().Elem().Kind() == reflect.String {
			list, ok = []*node{n}, true // "web" for ["web"]
		}
		if !ok {
			wrong("a list")
			return
		}
		v.Set(reflect.MakeSlice(v.Type(), len(list), len(list)))
		for i, item := range list {
			at := path
			if item != n {
				at = index(path, i)
			}
			d.decode(item, at, v.Index(i), f)
		}
	case reflect.String:
		s, ok := n.val.(string)
		if !ok {
			wrong("a string")
			return
		}
		v.SetString(s)
	case reflect.Bool:
		b, ok := n.val.(bool)
		if !ok {
			wrong("true or false")
			return
		}
		v.SetBool(b)
	case reflect.Int:
		i, ok := n.val.(int64)
		if x, isFloat := n.val.(float64); isFloat && x == math.Trunc(x) && math.Abs(x) < 1<<53 {
			i, ok = int64(x), true
		}
		if !ok {
			wrong("a whole number")
			return
		}
		v.SetInt(i)
	case reflect.Float64:
		switch x := n.val.(type) {
		case int64:
			v.SetFloat(float64(x))
		case float64:
			if math.IsNaN(x) || math.IsInf(x, 0) {
				wrong("a number")
				return
			}
			v.SetFloat(x)
		default:
			wrong("a number")
		}
	case reflect.Interface:
		x, ok := plain(n.val)
		if !ok {
			wrong("a string, a number, a list or a table")
			return
		}
		v.Set(reflect.ValueOf(x))
	default:
		panic(fmt.Sprintf("appconfig: no way to read a %s", v.Type()))
	}
}

// section reads a table into a struct and notes the keys that it does not have.
func (d *decoder) section(t *table, path string, v reflect.Value) {
	fields := fieldsOf(v.Type())
	names := make([]string, len(fields))
	for i, f := range fields {
		names[i] = f.name
	}
	for _, key := range t.keys {
		i := slices.Index(names, key)
		if i < 0 {
			d.unknown(t.m[key], path, key, names)
			continue
		}
		d.decode(t.m[key], join(path, key), v.FieldByIndex(fields[i].index), fields[i])
	}
}

// plain turns a tree back into ordinary values.
func plain(v any) (any, bool) {
	switch v := v.(type) {
	case string, bool, int64:
		return v, true
	case float64:
		return v, !math.IsNaN(v) && !math.IsInf(v, 0)
	case []*node:
		list := make([]any, 0, len(v))
		for _, n := range v {
			x, ok := plain(n.val)
			if !ok {
				return nil, false
			}
			list = append(list, x)
		}
		return list, true
	case *table:
		m := make(map[string]any, len(v.keys))
		for key, n := range v.m {
			x, ok := plain(n.val)
			if !ok {
				return nil, false
			}
			m[key] = x
		}
		return m, true
	}
	return nil, false
}

// unknown notes a key that nothing reads, with the one that was probably meant.
func (d *decoder) unknown(n *node, path, key string, names []string) {
	where := "at the top of the file"
	if path != "" {
		where = "in " + sectionName(path)
	}
	what := "unknown key"
	if _, ok := n.val.(*table); ok {
		what = "unknown section"
	}
	p := Problem{Message: fmt.Sprintf("%s %q %s: nothing reads it", what, clip(key), where), Warning: true, Unknown: true}
	if best := nearest(key, names); best != "" {
		p.Hint = fmt.Sprintf("did you mean %q?", best)
	} else if homes := homesOf(key); len(homes) > 0 {
		p.Hint = "it belongs to " + strings.Join(homes, " or ")
	}
	d.problem(n, join(path, key), p)
}

// sectionName writes a path as a header of the file: "[[services.ports]]".
func sectionName(path string) string {
	var b strings.Builder
	list := false
	for part := range strings.SplitSeq(path, ".") {
		name, _, found := strings.Cut(part, "[")
		list = found
		if b.Len() > 0 {
			b.WriteByte('.')
		}
		b.WriteString(name)
	}
	if list {
		return "[[" + b.String() + "]]"
	}
	return "[" + b.String() + "]"
}

// nearest returns the name that was probably meant: one that differs in
// nothing but dashes and an "s" at the end, or by few letters, or that begins
// or continues it; "" none.
func nearest(typed string, names []string) string {
	plain := func(s string) string {
		return strings.TrimSuffix(strings.ReplaceAll(strings.ToLower(s), "-", "_"), "s")
	}
	best, least := "", 3
	for _, name := range slices.Sorted(slices.Values(names)) {
		if plain(name) == plain(typed) {
			return name
		}
		if len(typed) > maxTyped {
			continue
		}
		if n := levenshtein.Distance(plain(typed), plain(name), nil); n < least && n*2 < len(name) {
			best, least = name, n
		}
	}
	if best != "" {
		return best
	}
	const enough = 3
	for _, name := range slices.Sorted(slices.Values(names)) {
		if len(name) >= enough && strings.HasPrefix(typed, name) || len(typed) >= enough && strings.HasPrefix(name, typed) {
			return name
		}
	}
	return ""
}

// maxTyped is longer than any name there is.
const maxTyped = 64

// homesOf lists the sections that have a key, for those who put it elsewhere.
func homesOf(key string) []string {
	var homes []string
	var walk func(t reflect.Type, path string, list bool)
	walk = func(t reflect.Type, path string, list bool) {
		for t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice || t.Kind() == reflect.Map {
			list = list || t.Kind() == reflect.Slice
			t = t.Elem()
		}
		if t.Kind() != reflect.Struct {
			return
		}
		for _, f := range fieldsOf(t) {
			sub := t.FieldByIndex(f.index).Type
			at := f.name
			if path != "" {
				at = path + "." + f.name
			}
			if f.name == key && !slices.Contains(homes, header(path, list)) {
				homes = append(homes, header(path, list))
			}
			walk(sub, at, false)
		}
	}
	walk(reflect.TypeFor[Config](), "", false)
	const most = 3
	if len(homes) > most {
		homes = homes[:most]
	}
	return homes
}

func header(path string, list bool) string {
	switch {
	case path == "":
		return "the top of the file, before all sections"
	case list:
		return "[[" + path + "]]"
	}
	return "[" + path + "]"
}

// at returns where a setting stands: its own place, or that of the nearest
// table around it.
func (c *Config) at(path string) Position {
	for path != "" {
		if p, ok := c.positions[path]; ok {
			return p
		}
		i := max(strings.LastIndexByte(path, '.'), strings.LastIndexByte(path, '['))
		path = path[:max(i, 0)]
	}
	return Position{}
}
