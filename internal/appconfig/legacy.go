package appconfig

import (
	"fmt"
	"strconv"
	"strings"
)

// patcher makes the forms of older files current ones, in the tree.
type patcher struct {
	top      *table
	problems Problems
}

// patch changes the tree of a file in place.
func patch(top *table) Problems {
	p := patcher{top: top}
	p.env()
	p.processes()
	p.rename("mounts", "mount")
	p.rename("metrics", "metric")
	p.rename("vm", "compute", "computes")
	for _, key := range []string{"mounts", "metrics", "vm", "services", "statics", "files", "restart", "serverless", "machine_checks"} {
		p.list(top, key)
	}
	p.build()
	p.experimental()
	for _, s := range p.tables(top, "services") {
		p.service(s)
	}
	if s, ok := tableOf(top.get("http_service")); ok {
		p.list(s, "checks")
		p.list(s, "machine_checks")
		for _, c := range p.tables(s, "checks") {
			p.check(c)
		}
		p.concurrency(s)
		p.number(s, "internal_port")
		p.drop(s, "script_checks")
	}
	p.checks()
	for _, s := range p.tables(top, "serverless") {
		p.alias(s, "paths", "path")
		p.alias(s, "processes", "process")
		p.alias(s, "methods", "method")
		p.number(s, "internal_port")
	}
	p.number(top, "swap_size_mb")
	p.drop(top, "allowed_public_ports")
	return p.problems
}

func (p *patcher) note(n *node, path, format string, args ...any) {
	p.problems = append(p.problems, Problem{Position: n.pos, Path: path, Message: fmt.Sprintf(format, args...), Warning: true})
}

func (p *patcher) fail(n *node, path, format string, args ...any) {
	p.problems = append(p.problems, Problem{Position: n.pos, Path: path, Message: fmt.Sprintf(format, args...)})
}

func tableOf(n *node) (*table, bool) {
	if n == nil {
		return nil, false
	}
	t, ok := n.val.(*table)
	return t, ok
}

func listOf(n *node) ([]*node, bool) {
	if n == nil {
		return nil, false
	}
	l, ok := n.val.([]*node)
	return l, ok
}

// rename moves older names of a top-level section to the current one.
func (p *patcher) rename(name string, olds ...string) {
	for _, old := range olds {
		n := p.top.get(old)
		if n == nil {
			continue
		}
		p.top.remove(old)
		if has := p.top.get(name); has != nil {
			a, b := asList(has), asList(n)
			p.top.set(name, &node{pos: has.pos, val: append(a, b...)})
			continue
		}
		p.top.set(name, n)
	}
}

// alias moves an older name of a key to the current one.
func (p *patcher) alias(t *table, name, old string) {
	n := t.get(old)
	if n == nil {
		return
	}
	t.remove(old)
	if t.get(name) != nil {
		p.fail(n, name, "%s and %s say the same twice: keep one", old, name)
		return
	}
	t.set(name, n)
}

func asList(n *node) []*node {
	if l, ok := n.val.([]*node); ok {
		return l
	}
	return []*node{n}
}

// list makes a single table a list of one; an empty list is dropped.
func (p *patcher) list(t *table, key string) {
	n := t.get(key)
	if n == nil {
		return
	}
	switch v := n.val.(type) {
	case *table:
		t.set(key, &node{pos: n.pos, val: []*node{{pos: n.pos, val: v}}})
	case []*node:
		if len(v) == 0 {
			t.remove(key)
		}
	}
}

// tables are the tables in a list.
func (p *patcher) tables(t *table, key string) []*table {
	list, _ := listOf(t.get(key))
	var out []*table
	for _, n := range list {
		if t, ok := n.val.(*table); ok {
			out = append(out, t)
		}
	}
	return out
}

// number turns digits in quotes into a number.
func (p *patcher) number(t *table, key string) {
	n := t.get(key)
	if n == nil {
		return
	}
	if s, ok := n.val.(string); ok {
		if i, err := strconv.ParseInt(strings.TrimSpace(s), 10, 64); err == nil {
			t.set(key, &node{pos: n.pos, val: i})
		}
	}
}

// drop removes what no platform reads any more; a line says so unless it was
// empty anyway.
func (p *patcher) drop(t *table, keys ...string) {
	for _, key := range keys {
		n := t.get(key)
		if n == nil {
			continue
		}
		t.remove(key)
		if l, ok := n.val.([]*node); !ok || len(l) > 0 {
			p.note(n, key, "%s is an old setting that has no effect any more", key)
		}
	}
}

// env may be a list of tables, merged from left to right.
func (p *patcher) env() {
	n := p.top.get("env")
	list, ok := listOf(n)
	if !ok {
		return
	}
	all := newTable()
	for _, item := range list {
		t, ok := item.val.(*table)
		if !ok {
			p.fail(item, "env", "env: want a table of names and values, got %s", kindOf(item.val))
			continue
		}
		for _, key := range t.keys {
			all.set(key, t.m[key])
		}
	}
	p.top.set("env", &node{pos: n.pos, val: all})
}

// processes may be a list of tables with name and command.
func (p *patcher) processes() {
	n := p.top.get("processes")
	list, ok := listOf(n)
	if !ok {
		return
	}
	if len(list) == 0 {
		p.top.remove("processes")
		return
	}
	all := newTable()
	for _, item := range list {
		name, command, ok := entry(item, "command")
		if !ok {
			p.fail(item, "processes", "processes: want entries with name and command")
			continue
		}
		all.set(name, command)
	}
	p.top.set("processes", &node{pos: n.pos, val: all})
}

// entry reads an item of a list that stands for a table: its name, and what is
// under key, which may be left out.
func entry(item *node, key string) (name string, value *node, ok bool) {
	t, isTable := item.val.(*table)
	if !isTable || t.get("name") == nil {
		return "", nil, false
	}
	if name, ok = t.get("name").val.(string); !ok {
		return "", nil, false
	}
	if value = t.get(key); value == nil {
		value = &node{pos: item.pos, val: ""}
	}
	return name, value, true
}

func (p *patcher) build() {
	b, ok := tableOf(p.top.get("build"))
	if !ok {
		return
	}
	if n := b.get("build_target"); n != nil && b.get("build-target") == nil {
		b.set("build-target", n)
	}
	b.remove("build_target")
}

func (p *patcher) experimental() {
	e, ok := tableOf(p.top.get("experimental"))
	if !ok {
		return
	}
	if n := e.get("kill_timeout"); n != nil {
		if p.top.get("kill_timeout") == nil {
			p.top.set("kill_timeout", n)
		}
		e.remove("kill_timeout")
	}
	port, path := e.get("metrics_port"), e.get("metrics_path")
	if port != nil && p.top.get("metrics") == nil {
		m := newTable()
		m.set("port", port)
		if path != nil {
			m.set("path", path)
		}
		p.top.set("metrics", &node{pos: port.pos, val: []*node{{pos: port.pos, val: m}}})
	}
	e.remove("metrics_port")
	e.remove("metrics_path")
	p.drop(e, "allowed_public_ports", "private_network", "enable_machines", "use_zstd", "extra_kernel_args")
}

func (p *patcher) service(s *table) {
	p.number(s, "internal_port")
	p.concurrency(s)
	for _, key := range []string{"ports", "tcp_checks", "http_checks", "machine_checks"} {
		p.list(s, key)
	}
	for _, port := range p.tables(s, "ports") {
		for _, key := range []string{"port", "start_port", "end_port"} {
			p.number(port, key)
		}
	}
	for _, key := range []string{"tcp_checks", "http_checks"} {
		for _, c := range p.tables(s, key) {
			p.check(c)
		}
	}
	p.drop(s, "script_checks")
	// A restart_limit of the service as a whole is one of each of its checks.
	if n := s.get("restart_limit"); n != nil {
		s.remove("restart_limit")
		for _, key := range []string{"tcp_checks", "http_checks"} {
			for _, c := range p.tables(s, key) {
				if c.get("restart_limit") == nil {
					c.set("restart_limit", n)
				}
			}
		}
	}
}

// concurrency may be "soft,hard", of requests.
func (p *patcher) concurrency(s *table) {
	n := s.get("concurrency")
	if n == nil {
		return
	}
	text, ok := n.val.(string)
	if !ok {
		return
	}
	soft, hard, ok := strings.Cut(text, ",")
	a, errA := strconv.ParseInt(strings.TrimSpace(soft), 10, 64)
	b, errB := strconv.ParseInt(strings.TrimSpace(hard), 10, 64)
	if !ok || errA != nil || errB != nil {
		p.fail(n, "concurrency", "concurrency: %q is not of the form \"soft,hard\"", clip(text))
		s.remove("concurrency")
		return
	}
	t := newTable()
	t.set("type", &node{pos: n.pos, val: "requests"})
	t.set("soft_limit", &node{pos: n.pos, val: a})
	t.set("hard_limit", &node{pos: n.pos, val: b})
	s.set("concurrency", &node{pos: n.pos, val: t})
}

func (p *patcher) check(c *table) {
	for _, key := range []string{"interval", "timeout", "grace_period"} {
		if n := c.get(key); n != nil && n.val == "" {
			c.remove(key)
		}
	}
	p.number(c, "restart_limit")
	p.number(c, "port")
	n := c.get("headers")
	if n == nil {
		return
	}
	headers := newTable()
	switch v := n.val.(type) {
	case []*node:
		for _, item := range v {
			name, value, ok := entry(item, "value")
			if !ok {
				p.fail(item, "headers", "headers: want a table of names and values, or a list of tables with name and value")
				continue
			}
			headers.set(name, value)
		}
	case *table:
		headers = v
	default:
		return
	}
	for _, key := range headers.keys {
		if s, ok := scalar(headers.m[key].val); ok {
			headers.m[key] = &node{pos: headers.m[key].pos, val: s}
		}
	}
	if len(headers.keys) == 0 {
		c.remove("headers")
		return
	}
	c.set("headers", &node{pos: n.pos, val: headers})
}

// checks may be a list of tables with name.
func (p *patcher) checks() {
	n := p.top.get("checks")
	if list, ok := listOf(n); ok {
		all := newTable()
		for _, item := range list {
			t, ok := item.val.(*table)
			name, named := "", false
			if ok && t.get("name") != nil {
				name, named = t.get("name").val.(string)
			}
			if !named {
				p.fail(item, "checks", "checks: want a section [checks.NAME], or entries with a name")
				continue
			}
			t.remove("name")
			all.set(name, item)
		}
		if len(all.keys) == 0 {
			p.top.remove("checks")
			return
		}
		p.top.set("checks", &node{pos: n.pos, val: all})
	}
	if t, ok := tableOf(p.top.get("checks")); ok {
		for _, key := range t.keys {
			if c, ok := t.m[key].val.(*table); ok {
				p.check(c)
			}
		}
	}
}
