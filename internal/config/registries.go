package config

import (
	"errors"
	"fmt"
	"net/url"
	"strings"
)

// registriesKey is the one setting that only the file has: its values have parts.
//
//	[[registries]]
//	host = "docker.io"
//	mirrors = ["https://mirror.example.com"]
//	username = "shop"
//	password_file = "/etc/roost/mirror.password"
const registriesKey = "registries"

func parseRegistries(v any) ([]Registry, error) {
	list, ok := v.([]any)
	if !ok {
		return nil, errors.New("registries: write them as [[registries]] with host = \"...\"")
	}
	var out []Registry
	for _, item := range list {
		table, ok := item.(map[string]any)
		if !ok {
			return nil, errors.New("registries: write them as [[registries]] with host = \"...\"")
		}
		r, err := parseRegistry(table)
		if err != nil {
			return nil, err
		}
		for _, other := range out {
			if other.Host == r.Host {
				return nil, fmt.Errorf("registries: %s stands twice", r.Host)
			}
		}
		out = append(out, r)
	}
	return out, nil
}

func parseRegistry(table map[string]any) (Registry, error) {
	var r Registry
	for key, v := range table {
		var ok bool
		switch key {
		case "host":
			r.Host, ok = v.(string)
		case "username":
			r.Username, ok = v.(string)
		case "password_file":
			r.PasswordFile, ok = v.(string)
		case "password_env":
			r.PasswordEnv, ok = v.(string)
		case "plain_http":
			r.PlainHTTP, ok = v.(bool)
		case "mirrors":
			r.Mirrors, ok = texts(v)
		case "password":
			return r, errors.New("registries: a password does not belong into this file: name one with password_file")
		default:
			return r, fmt.Errorf("registries: unknown key %q: there are host, mirrors, username, password_file, password_env and plain_http", key)
		}
		if !ok {
			return r, fmt.Errorf("registries: %s has the wrong type", key)
		}
	}
	if r.Host == "" || strings.ContainsAny(r.Host, "/ ") {
		return r, fmt.Errorf("registries: host = %q: want a registry's name, such as \"docker.io\"", r.Host)
	}
	for _, m := range r.Mirrors {
		if u, err := url.Parse(m); err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil {
			return r, fmt.Errorf("registries: mirror %q: want a URL such as \"https://mirror.example.com\"", m)
		}
	}
	if r.PasswordFile != "" && r.PasswordEnv != "" {
		return r, fmt.Errorf("registries: %s has both password_file and password_env", r.Host)
	}
	return r, nil
}

func texts(v any) ([]string, bool) {
	list, ok := v.([]any)
	var out []string
	for _, item := range list {
		s, is := item.(string)
		ok = ok && is
		out = append(out, s)
	}
	return out, ok
}

// String prints the registry as the file has it.
func (r Registry) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "\n[[registries]]\nhost = %q\n", r.Host)
	if len(r.Mirrors) > 0 {
		fmt.Fprintf(&b, "mirrors = [")
		for i, m := range r.Mirrors {
			if i > 0 {
				b.WriteString(", ")
			}
			fmt.Fprintf(&b, "%q", m)
		}
		b.WriteString("]\n")
	}
	for _, kv := range [][2]string{{"username", r.Username}, {"password_file", r.PasswordFile}, {"password_env", r.PasswordEnv}} {
		if kv[1] != "" {
			fmt.Fprintf(&b, "%s = %q\n", kv[0], kv[1])
		}
	}
	if r.PlainHTTP {
		b.WriteString("plain_http = true\n")
	}
	return b.String()
}
