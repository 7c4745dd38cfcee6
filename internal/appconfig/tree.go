package appconfig

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"path/filepath"
	"regexp"
	"slices"
	"sort"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"
	"go.yaml.in/yaml/v3"
)

// Position is a place in a file, from 1 on; columns count bytes. Zero is no
// place at all.
type Position struct{ Line, Column int }

// node is a value of a file and where it stands: at its key, or, in a list, at
// its beginning. val is nil, string, bool, int64, float64, []*node or *table;
// anything else (a TOML date) is no value that a config has.
type node struct {
	pos Position
	val any
}

// table is an ordered map.
type table struct {
	keys []string
	m    map[string]*node
}

func newTable() *table { return &table{m: make(map[string]*node)} }

func (t *table) get(key string) *node { return t.m[key] }

func (t *table) set(key string, n *node) {
	if _, ok := t.m[key]; !ok {
		t.keys = append(t.keys, key)
	}
	t.m[key] = n
}

func (t *table) remove(key string) {
	if _, ok := t.m[key]; ok {
		delete(t.m, key)
		t.keys = slices.DeleteFunc(t.keys, func(k string) bool { return k == key })
	}
}

// maxFile is far more than any config has.
const maxFile = 1 << 20

// readTree reads a file by the format that its name's suffix says.
func readTree(name string, data []byte) (*table, *Problem) {
	if len(data) > maxFile {
		return nil, &Problem{Message: fmt.Sprintf("the file has %d bytes, more than a config ever needs (%d)", len(data), maxFile)}
	}
	if !utf8.Valid(data) {
		return nil, &Problem{Message: "the file is not text in UTF-8"}
	}
	var (
		value     map[string]any
		positions map[string]Position
		problem   *Problem
	)
	switch filepath.Ext(name) {
	case ".json":
		value, positions, problem = readJSON(data)
	case ".yaml", ".yml":
		value, positions, problem = readYAML(data)
	default:
		value, positions, problem = readTOML(data)
	}
	if problem != nil {
		return nil, problem
	}
	t, _ := tree(value, "", positions).val.(*table)
	return t, nil
}

// tree gives a value its positions. Tables are ordered by them.
func tree(v any, path string, at map[string]Position) *node {
	n := &node{pos: at[path]}
	switch v := v.(type) {
	case map[string]any:
		t := newTable()
		for _, key := range slices.Sorted(maps.Keys(v)) {
			t.set(key, tree(v[key], join(path, key), at))
		}
		sort.SliceStable(t.keys, func(i, j int) bool {
			a, b := t.m[t.keys[i]].pos, t.m[t.keys[j]].pos
			return a.Line < b.Line || a.Line == b.Line && a.Column < b.Column
		})
		n.val = t
	case map[any]any: // YAML with keys that are no strings
		m := make(map[string]any, len(v))
		for key, value := range v {
			m[fmt.Sprint(key)] = value
		}
		return tree(m, path, at)
	case []any:
		list := make([]*node, len(v))
		for i := range v {
			list[i] = tree(v[i], index(path, i), at)
		}
		n.val = list
	case int:
		n.val = int64(v)
	case uint64:
		n.val = float64(v)
	case json.Number:
		if i, err := v.Int64(); err == nil {
			n.val = i
		} else if f, err := v.Float64(); err == nil {
			n.val = f
		} else {
			n.val = v
		}
	default:
		n.val = v
	}
	return n
}

// join and index make the paths under which positions are kept. A key with
// dots cannot be mistaken for two.
func join(path, key string) string {
	key = strings.ReplaceAll(key, ".", "\\.")
	if path == "" {
		return key
	}
	return path + "." + key
}

func index(path string, i int) string { return path + "[" + strconv.Itoa(i) + "]" }

// lines finds the line and column of offsets.
type lines struct{ starts []int }

func newLines(data []byte) lines {
	l := lines{starts: []int{0}}
	for i, b := range data {
		if b == '\n' {
			l.starts = append(l.starts, i+1)
		}
	}
	return l
}

func (l lines) at(offset int) Position {
	i := sort.SearchInts(l.starts, offset+1) - 1
	return Position{Line: i + 1, Column: offset - l.starts[i] + 1}
}

func readTOML(data []byte) (map[string]any, map[string]Position, *Problem) {
	var value map[string]any
	if err := toml.Unmarshal(data, &value); err != nil {
		p := &Problem{Message: strings.TrimPrefix(err.Error(), "toml: ")}
		if e, ok := errors.AsType[*toml.DecodeError](err); ok {
			p.Line, p.Column = e.Position()
		}
		return nil, nil, p
	}
	x := tomlIndex{lines: newLines(data), at: make(map[string]Position), lists: make(map[string]int)}
	x.parser.Reset(data)
	prefix := ""
	for x.parser.NextExpression() {
		e := x.parser.Expression()
		switch e.Kind {
		case unstable.Table, unstable.ArrayTable:
			prefix = x.header(e)
		case unstable.KeyValue:
			x.keyValue(prefix, e)
		}
	}
	return value, x.at, nil
}

// tomlIndex collects the positions of a document that is known to be valid.
type tomlIndex struct {
	parser unstable.Parser
	lines  lines
	at     map[string]Position
	lists  map[string]int // entries so far of each array of tables
}

func (x *tomlIndex) mark(path string, r unstable.Range) {
	if _, ok := x.at[path]; !ok {
		x.at[path] = x.lines.at(int(r.Offset))
	}
}

// header follows a [table] or [[array.of.tables]] and returns its path.
func (x *tomlIndex) header(e *unstable.Node) string {
	path := ""
	for it := e.Key(); it.Next(); {
		path = join(path, string(it.Node().Data))
		x.mark(path, it.Node().Raw)
		switch n := x.lists[path]; {
		case e.Kind == unstable.ArrayTable && it.IsLast():
			x.lists[path]++
			path = index(path, n)
			x.mark(path, it.Node().Raw)
		case n > 0:
			path = index(path, n-1)
		}
	}
	return path
}

func (x *tomlIndex) keyValue(path string, e *unstable.Node) {
	for it := e.Key(); it.Next(); {
		path = join(path, string(it.Node().Data))
		x.mark(path, it.Node().Raw)
	}
	x.value(path, e.Value())
}

func (x *tomlIndex) value(path string, v *unstable.Node) {
	switch v.Kind {
	case unstable.Array:
		i := 0
		for it := v.Children(); it.Next(); {
			n := it.Node()
			if n.Kind == unstable.Comment {
				continue
			}
			if n.Raw.Length > 0 {
				x.mark(index(path, i), n.Raw)
			}
			x.value(index(path, i), n)
			i++
		}
	case unstable.InlineTable:
		for it := v.Children(); it.Next(); {
			if it.Node().Kind == unstable.KeyValue {
				x.keyValue(path, it.Node())
			}
		}
	}
}

var yamlLine = regexp.MustCompile(`^yaml: (?:unmarshal errors:\n\s*)?(?:line (\d+): )?`)

func readYAML(data []byte) (map[string]any, map[string]Position, *Problem) {
	var doc yaml.Node
	var value map[string]any
	err := yaml.Unmarshal(data, &doc)
	if err == nil {
		err = yaml.Unmarshal(data, &value)
	}
	if err != nil {
		p := &Problem{Message: err.Error()}
		if m := yamlLine.FindStringSubmatch(p.Message); m != nil {
			p.Message = p.Message[len(m[0]):]
			if n, err := strconv.Atoi(m[1]); err == nil {
				p.Line, p.Column = n, 1
			}
		}
		return nil, nil, p
	}
	at := make(map[string]Position)
	var walk func(path string, n *yaml.Node)
	walk = func(path string, n *yaml.Node) {
		switch n.Kind {
		case yaml.DocumentNode:
			for _, c := range n.Content {
				walk(path, c)
			}
		case yaml.MappingNode:
			for i := 0; i+1 < len(n.Content); i += 2 {
				key := join(path, n.Content[i].Value)
				at[key] = Position{n.Content[i].Line, n.Content[i].Column}
				walk(key, n.Content[i+1])
			}
		case yaml.SequenceNode:
			for i, c := range n.Content {
				at[index(path, i)] = Position{c.Line, c.Column}
				walk(index(path, i), c)
			}
		}
	}
	walk("", &doc)
	return value, at, nil
}

func readJSON(data []byte) (map[string]any, map[string]Position, *Problem) {
	l := newLines(data)
	var value map[string]any
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.UseNumber()
	err := dec.Decode(&value)
	if err == nil {
		if _, err = dec.Token(); errors.Is(err, io.EOF) {
			err = nil
		} else if err == nil {
			err = errors.New("something follows the JSON document")
		}
	}
	if err != nil {
		p := &Problem{Message: err.Error()}
		offset := dec.InputOffset()
		if e, ok := errors.AsType[*json.SyntaxError](err); ok {
			offset = max(e.Offset-1, 0)
		}
		if e, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
			p.Message, offset = "the file must hold one JSON object, not "+e.Value, 0
		}
		pos := l.at(min(int(offset), len(data)))
		p.Line, p.Column = pos.Line, pos.Column
		return nil, nil, p
	}
	x := jsonIndex{dec: json.NewDecoder(bytes.NewReader(data)), data: data, lines: l, at: make(map[string]Position)}
	x.value("")
	return value, x.at, nil
}

// jsonIndex collects the positions of a document that is known to be valid.
type jsonIndex struct {
	dec   *json.Decoder
	data  []byte
	lines lines
	at    map[string]Position
}

// next is where the next token begins.
func (x *jsonIndex) next() Position {
	offset := int(x.dec.InputOffset())
	for offset < len(x.data) && strings.IndexByte(" \t\r\n,:", x.data[offset]) >= 0 {
		offset++
	}
	return x.lines.at(offset)
}

func (x *jsonIndex) value(path string) {
	token, err := x.dec.Token()
	if err != nil {
		return
	}
	switch token {
	case json.Delim('{'):
		for x.dec.More() {
			at := x.next()
			key, err := x.dec.Token()
			if err != nil {
				return
			}
			name, _ := key.(string)
			x.at[join(path, name)] = at
			x.value(join(path, name))
		}
		_, _ = x.dec.Token()
	case json.Delim('['):
		for i := 0; x.dec.More(); i++ {
			x.at[index(path, i)] = x.next()
			x.value(index(path, i))
		}
		_, _ = x.dec.Token()
	}
}
