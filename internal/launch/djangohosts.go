package launch

import (
	"slices"
	"strings"
)

// knowsHTTPS reports whether the app hears of the proxy's TLS.
func (p *djangoProject) knowsHTTPS() bool {
	_, set := p.settings.vars["SECURE_PROXY_SSL_HEADER"]
	return set
}

// chooseHTTPS: Django has to hear that a request came by HTTPS, or it takes
// its own address for another one and refuses forms.
func (p *djangoProject) chooseHTTPS() {
	t, s := p.settings, p.s
	const header = `SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")`
	e := t.get("SECURE_SSL_REDIRECT")
	redirects := e != nil && (e.kind != name || e.text != "False")
	switch {
	case redirects && !p.knowsHTTPS():
		s.todo("SECURE_SSL_REDIRECT redirects for ever: TLS ends at Roost's proxy; add %s to the settings", header)
	case redirects:
		s.fly.https = true
		s.choose("HTTPS: the settings redirect to it (SECURE_SSL_REDIRECT), so the proxy does, too (force_https)")
	case !p.knowsHTTPS() && p.packages == nil && strings.Contains(t.text, "CsrfViewMiddleware"): // Debian's Django is older
		s.todo("over HTTPS Django refuses forms (CSRF) unless it hears of it from the proxy: add %s to the settings", header)
	}
	if v := t.readsEnv("CSRF_TRUSTED_ORIGINS"); v != nil {
		s.fly.env = append(s.fly.env, pair{v.name, "https://" + s.o.App + "." + s.o.Domain})
	}
}

// chooseHosts finds a name that the app answers to.
func (p *djangoProject) chooseHosts() {
	t, s := p.settings, p.s
	host := s.o.App + "." + s.o.Domain
	hosts, whole := t.lists("ALLOWED_HOSTS")
	if allowed(hosts, host) {
		s.choose("hosts: ALLOWED_HOSTS lets %s in", host)
		return
	}
	if v := t.readsEnv("ALLOWED_HOSTS"); v != nil {
		s.fly.env = append(s.fly.env, pair{v.name, host})
		s.choose("hosts: the settings read ALLOWED_HOSTS from %s, which fly.toml sets to %s", v.name, host)
		return
	}
	if !whole {
		return
	}
	s.todo("ALLOWED_HOSTS does not let %s in: add it, or Django answers 400", host)
	if len(hosts) > 0 {
		s.fly.checkHost = strings.TrimPrefix(hosts[0], ".")
	}
}

func allowed(hosts []string, host string) bool {
	return slices.ContainsFunc(hosts, func(h string) bool {
		return h == "*" || h == host || strings.HasPrefix(h, ".") && (strings.HasSuffix(host, h) || "."+host == h)
	})
}
