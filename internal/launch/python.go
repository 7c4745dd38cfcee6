package launch

import (
	"slices"
	"strings"
)

// statement is a logical line of Python: comments are gone, lines within
// brackets are joined.
type statement struct {
	indent int
	text   string
}

// statements splits a source. Strings are kept as they are.
func statements(src string) []statement {
	var out []statement
	var b strings.Builder
	indent, depth, fresh := 0, 0, true
	end := func() {
		if text := strings.TrimSpace(b.String()); text != "" {
			out = append(out, statement{indent, text})
		}
		b.Reset()
		indent, fresh = 0, true
	}
	for i := 0; i < len(src); {
		c := src[i]
		switch {
		case c == '#':
			for i < len(src) && src[i] != '\n' {
				i++
			}
			continue
		case c == '"' || c == '\'':
			n := stringLength(src[i:])
			b.WriteString(src[i : i+n])
			fresh = false
			i += n
			continue
		case c == '\\' && strings.HasPrefix(src[i+1:], "\n"):
			b.WriteByte(' ')
			i += 2
			continue
		case c == '\n' && depth == 0:
			end()
		case c == '\n':
			b.WriteByte(' ')
		case fresh && (c == ' ' || c == '\t'):
			indent++
		case c == '\r':
		default:
			fresh = false
			switch c {
			case '(', '[', '{':
				depth++
			case ')', ']', '}':
				depth = max(0, depth-1)
			}
			b.WriteByte(c)
		}
		i++
	}
	end()
	return out
}

// stringLength is the length of the string literal that s begins with.
func stringLength(s string) int {
	quote := s[:1]
	if strings.HasPrefix(s, quote+quote+quote) {
		quote = s[:3]
	}
	for i := len(quote); i < len(s); i++ {
		switch {
		case s[i] == '\\':
			i++
		case strings.HasPrefix(s[i:], quote):
			return i + len(quote)
		case len(quote) == 1 && s[i] == '\n':
			return i // not closed: the line ends it
		}
	}
	return len(s)
}

// expr is an expression as far as it is understood.
type expr struct {
	kind kind
	text string // of a string its value, of a name or attribute the name, of an operation the operator
	args []*expr
	kw   map[string]*expr // of a call
}

type kind uint8

const (
	unknown kind = iota
	text
	name
	attribute // args[0].text
	call      // args[0](args[1:], kw)
	index     // args[0][args[1]]
	sequence  // list, tuple or set
	mapping   // keys and values in turn
	operation // args joined by the operator text
)

// dotted is the name of a chain like os.environ.get, "" for anything else.
func (e *expr) dotted() string {
	switch {
	case e == nil:
	case e.kind == name:
		return e.text
	case e.kind == attribute:
		if base := e.args[0].dotted(); base != "" {
			return base + "." + e.text
		}
	}
	return ""
}

// walk calls f for e and everything in it.
func (e *expr) walk(f func(*expr)) {
	if e == nil {
		return
	}
	f(e)
	for _, a := range e.args {
		a.walk(f)
	}
	for _, a := range e.kw {
		a.walk(f)
	}
}

// strings returns the elements of a sequence of plain strings; whole is false
// if there is anything else in it.
func (e *expr) strings() (list []string, whole bool) {
	if e == nil || e.kind != sequence {
		return nil, false
	}
	whole = true
	for _, a := range e.args {
		if a.kind != text {
			whole = false
			continue
		}
		list = append(list, a.text)
	}
	return list, whole
}

// parseExpr reads an expression; what it does not understand is unknown, with
// what it did understand inside.
func parseExpr(src string) *expr {
	p := &parser{tokens: tokenize(src)}
	return p.expression()
}

type token struct {
	kind kind // text, name, or unknown for everything else
	text string
}

func tokenize(src string) []token {
	var out []token
	for i := 0; i < len(src); {
		c := src[i]
		switch {
		case c == ' ' || c == '\t' || c == '\n':
			i++
		case c == '"' || c == '\'':
			n := stringLength(src[i:])
			out = append(out, token{text, unquote(src[i:i+n], false)})
			i += n
		case isWord(c):
			j := i
			for j < len(src) && isWord(src[j]) {
				j++
			}
			word := src[i:j]
			if prefix := strings.ToLower(word); j < len(src) && (src[j] == '"' || src[j] == '\'') && len(prefix) <= 2 && strings.Trim(prefix, "rbuf") == "" {
				n := stringLength(src[j:])
				value := token{text, unquote(src[j:j+n], strings.Contains(prefix, "r"))}
				if strings.Contains(prefix, "f") && strings.Contains(value.text, "{") {
					value.kind = unknown
				}
				out = append(out, value)
				i = j + n
				continue
			}
			k := name
			if c >= '0' && c <= '9' {
				k = unknown
			}
			out = append(out, token{k, word})
			i = j
		default:
			n := 1
			for _, op := range []string{"**", "//", "==", "!=", "<=", ">=", "->", ":="} {
				if strings.HasPrefix(src[i:], op) {
					n = 2
				}
			}
			out = append(out, token{unknown, src[i : i+n]})
			i += n
		}
	}
	return out
}

func isWord(c byte) bool {
	return c == '_' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c >= 0x80
}

func unquote(s string, raw bool) string {
	n := 1
	if len(s) >= 6 && s[0] == s[1] && s[1] == s[2] {
		n = 3
	}
	if len(s) < 2*n {
		return ""
	}
	s = s[n : len(s)-n]
	if raw || !strings.Contains(s, `\`) {
		return s
	}
	return strings.NewReplacer(`\\`, `\`, `\n`, "\n", `\t`, "\t", `\'`, `'`, `\"`, `"`).Replace(s)
}

type parser struct {
	tokens []token
	depth  int
}

// maxDepth bounds nesting: settings are flat.
const maxDepth = 100

func (p *parser) peek() token {
	if len(p.tokens) == 0 {
		return token{}
	}
	return p.tokens[0]
}

func (p *parser) next() token {
	t := p.peek()
	if len(p.tokens) > 0 {
		p.tokens = p.tokens[1:]
	}
	return t
}

func (p *parser) is(symbol string) bool {
	t := p.peek()
	return t.kind == unknown && t.text == symbol
}

func (p *parser) word(words ...string) bool {
	t := p.peek()
	return t.kind == name && slices.Contains(words, t.text)
}

// expression is operands joined by operators, all of one precedence: what is
// asked of the result is a path joined by "/", or what is named inside.
func (p *parser) expression() *expr {
	if p.depth++; p.depth > maxDepth {
		p.tokens = nil
		return &expr{}
	}
	defer func() { p.depth-- }()
	e := p.operand()
	for len(p.tokens) > 0 {
		switch {
		case p.word("and", "or", "in", "is", "if", "else", "not", "for", "async"):
		case p.peek().kind == unknown && strings.Contains("+ - * / // % ** | & ^ < > <= >= == != @ :=", p.peek().text) && p.peek().text != "":
		default:
			return e
		}
		op := p.next().text
		e = &expr{kind: operation, text: op, args: []*expr{e, p.operand()}}
	}
	return e
}

func (p *parser) operand() *expr {
	for p.is("-") || p.is("+") || p.is("*") || p.is("**") || p.is("~") || p.word("not", "await", "lambda") {
		p.next()
	}
	e := &expr{}
	switch t := p.peek(); {
	case t.kind == text:
		e = &expr{kind: text}
		for p.peek().kind == text { // neighbours are one string
			e.text += p.next().text
		}
	case t.kind == name:
		p.next()
		e = &expr{kind: name, text: t.text}
	case p.is("("):
		p.next()
		list := p.list(")")
		e = &expr{kind: sequence, args: list.args}
		if len(list.args) == 1 && !list.comma {
			e = list.args[0]
		}
	case p.is("["):
		p.next()
		e = &expr{kind: sequence, args: p.list("]").args}
	case p.is("{"):
		p.next()
		list := p.list("}")
		e = &expr{kind: sequence, args: list.args}
		if list.colon {
			e.kind = mapping
		}
	case p.is(")") || p.is("]") || p.is("}") || p.is(",") || p.is(":") || p.is("="):
		return e
	default:
		e.text = p.next().text
	}
	for {
		switch {
		case p.is("."):
			p.next()
			e = &expr{kind: attribute, text: p.next().text, args: []*expr{e}}
		case p.is("("):
			p.next()
			list := p.list(")")
			e = &expr{kind: call, args: append([]*expr{e}, list.args...), kw: list.kw}
		case p.is("["):
			p.next()
			e = &expr{kind: index, args: append([]*expr{e}, p.list("]").args...)}
		default:
			return e
		}
	}
}

type list struct {
	args         []*expr
	kw           map[string]*expr
	comma, colon bool
}

// list reads what is between brackets, up to the closing one.
func (p *parser) list(closing string) (l list) {
	for len(p.tokens) > 0 {
		switch {
		case p.is(closing):
			p.next()
			return l
		case p.is(","):
			p.next()
			l.comma = true
		case p.is(":"):
			p.next()
			l.colon = true
		case p.is(")") || p.is("]") || p.is("}"):
			p.next() // does not belong here
		case p.peek().kind == name && len(p.tokens) > 1 && p.tokens[1] == token{unknown, "="}:
			key := p.next().text
			p.next()
			if l.kw == nil {
				l.kw = map[string]*expr{}
			}
			l.kw[key] = p.expression()
		default:
			before := len(p.tokens)
			l.args = append(l.args, p.expression())
			if len(p.tokens) == before {
				p.next()
			}
		}
	}
	return l
}
