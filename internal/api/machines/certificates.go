package machines

import (
	"context"
	"net/http"
	"strings"
	"time"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/api/route"
	"github.com/roost-run/roost/internal/auth"
	"github.com/roost-run/roost/internal/control"
	public "github.com/roost-run/roost/machines"
)

// Certs are control's verbs on hostnames and certificates.
type Certs interface {
	Add(ctx context.Context, a auth.Actor, app root.AppName, hostname string) (control.CertStatus, error)
	Import(ctx context.Context, a auth.Actor, app root.AppName, hostname, chain, key string) (control.CertStatus, error)
	Get(ctx context.Context, a auth.Actor, app root.AppName, hostname string) (control.CertStatus, error)
	List(ctx context.Context, a auth.Actor, app root.AppName) ([]control.CertStatus, error)
	Check(ctx context.Context, a auth.Actor, app root.AppName, hostname string) (control.CertStatus, error)
	Remove(ctx context.Context, a auth.Actor, app root.AppName, hostname string) error
	RemoveUploaded(ctx context.Context, a auth.Actor, app root.AppName, hostname string) (control.CertStatus, error)
	RemoveACME(ctx context.Context, a auth.Actor, app root.AppName, hostname string) (control.CertStatus, error)
}

// certificateRoutes are the rows of hostnames ("Certificates" of the Fly docs).
func certificateRoutes(h *handlers, app string) []route.Route {
	list := app + "/certificates"
	one := list + "/{hostname}"
	return []route.Route{
		{Method: http.MethodGet, Pattern: list, Permission: auth.CertRead, Handler: h.listCertificates},
		{Method: http.MethodPost, Pattern: list + "/acme", Permission: auth.CertWrite, Handler: h.addCertificate},
		{Method: http.MethodPost, Pattern: list + "/custom", Permission: auth.CertWrite, Handler: h.importCertificate},
		{Method: http.MethodGet, Pattern: one, Permission: auth.CertRead, Handler: h.certificate(h.getCertificate)},
		{Method: http.MethodPost, Pattern: one + "/check", Permission: auth.CertRead, Handler: h.certificate(h.checkCertificate)},
		{Method: http.MethodDelete, Pattern: one, Permission: auth.CertWrite, Handler: h.removeCertificate},
		{Method: http.MethodDelete, Pattern: one + "/acme", Permission: auth.CertWrite, Handler: h.certificate(h.removeACME)},
		{Method: http.MethodDelete, Pattern: one + "/custom", Permission: auth.CertWrite, Handler: h.certificate(h.removeCustom)},
	}
}

func (h *handlers) addCertificate(w http.ResponseWriter, r *http.Request) error {
	app, err := route.App(r)
	if err != nil {
		return err
	}
	var in struct {
		Hostname string `json:"hostname"`
	}
	if err := route.ReadJSON(r, &in, false); err != nil {
		return err
	}
	st, err := h.Certs.Add(r.Context(), route.Actor(r), app, in.Hostname)
	if err != nil {
		return certificateRefused(err)
	}
	return route.WriteJSON(w, http.StatusCreated, fromCert(st))
}

func (h *handlers) importCertificate(w http.ResponseWriter, r *http.Request) error {
	app, err := route.App(r)
	if err != nil {
		return err
	}
	var in struct {
		Hostname   string `json:"hostname"`
		Fullchain  string `json:"fullchain"`
		PrivateKey string `json:"private_key"`
	}
	if err := route.ReadJSON(r, &in, false); err != nil {
		return err
	}
	st, err := h.Certs.Import(r.Context(), route.Actor(r), app, in.Hostname, in.Fullchain, in.PrivateKey)
	if err != nil {
		return certificateRefused(err)
	}
	return route.WriteJSON(w, http.StatusCreated, fromCert(st))
}

// certificateRefused makes what cannot be accepted a 422, as Fly does.
func certificateRefused(err error) error {
	if root.IsKind(err, root.Invalid) {
		return &root.Error{Kind: root.Invalid, Code: root.CodeCertRefused, Message: root.MessageOf(err), Err: err}
	}
	return err
}

func (h *handlers) listCertificates(w http.ResponseWriter, r *http.Request) error {
	app, err := route.App(r)
	if err != nil {
		return err
	}
	q := r.URL.Query()
	limit, err := route.Int(q, "limit", 1, 500, 25)
	if err != nil {
		return err
	}
	all, err := h.Certs.List(r.Context(), route.Actor(r), app)
	if err != nil {
		return err
	}
	filter, cursor := q.Get("filter"), q.Get("cursor")
	page, next, total := []public.CertificateSummary{}, "", 0
	for _, st := range all {
		name := st.Hostname.Name
		if filter != "" && !strings.Contains(name, strings.ToLower(filter)) {
			continue
		}
		total++
		switch {
		case name <= cursor:
		case len(page) < limit:
			page = append(page, summary(st))
		case next == "":
			next = page[limit-1].Hostname
		}
	}
	return route.WriteJSON(w, http.StatusOK, map[string]any{"certificates": page, "next_cursor": next, "total_count": total})
}

// certificate answers with what a verb says of one hostname.
func (h *handlers) certificate(verb func(r *http.Request, app root.AppName, hostname string) (control.CertStatus, error)) route.Handler {
	return func(w http.ResponseWriter, r *http.Request) error {
		app, err := route.App(r)
		if err != nil {
			return err
		}
		st, err := verb(r, app, r.PathValue("hostname"))
		if err != nil {
			return err
		}
		return route.WriteJSON(w, http.StatusOK, fromCert(st))
	}
}

func (h *handlers) getCertificate(r *http.Request, app root.AppName, hostname string) (control.CertStatus, error) {
	return h.Certs.Get(r.Context(), route.Actor(r), app, hostname)
}

func (h *handlers) checkCertificate(r *http.Request, app root.AppName, hostname string) (control.CertStatus, error) {
	return h.Certs.Check(r.Context(), route.Actor(r), app, hostname)
}

func (h *handlers) removeACME(r *http.Request, app root.AppName, hostname string) (control.CertStatus, error) {
	return h.Certs.RemoveACME(r.Context(), route.Actor(r), app, hostname)
}

func (h *handlers) removeCustom(r *http.Request, app root.AppName, hostname string) (control.CertStatus, error) {
	st, err := h.Certs.RemoveUploaded(r.Context(), route.Actor(r), app, hostname)
	if err == nil && !st.Configured() {
		st.Warnings = append(st.Warnings, "the hostname has no other certificate: HTTPS does not work for it until it has")
	}
	return st, err
}

func (h *handlers) removeCertificate(w http.ResponseWriter, r *http.Request) error {
	app, err := route.App(r)
	if err != nil {
		return err
	}
	if err := h.Certs.Remove(r.Context(), route.Actor(r), app, r.PathValue("hostname")); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func summary(st control.CertStatus) public.CertificateSummary {
	v := validation(st)
	updated := st.Hostname.CreatedAt
	for _, i := range []*control.CertInfo{st.Uploaded, st.Issued} {
		if i != nil && i.NotBefore.After(updated) {
			updated = i.NotBefore
		}
	}
	return public.CertificateSummary{
		Hostname: st.Hostname.Name, Status: certStatus(st), Configured: st.Configured(), ACMERequested: st.Hostname.ACME,
		ACMEDNSConfigured: v.DNSConfigured, ACMEALPNConfigured: v.ALPNConfigured, ACMEHTTPConfigured: v.HTTPConfigured,
		HasCustomCertificate: st.Uploaded != nil, HasFlyCertificate: st.Issued != nil, CreatedAt: st.Hostname.CreatedAt, UpdatedAt: updated,
		Private: st.Private,
	}
}

func certStatus(st control.CertStatus) string {
	if st.Configured() {
		return "active"
	}
	return "pending_validation"
}

func validation(st control.CertStatus) public.Validation {
	works := st.Issued != nil || st.DNS != nil && st.DNS.HTTP
	return public.Validation{HTTPConfigured: works, ALPNConfigured: works}
}

func fromCert(st control.CertStatus) public.Certificate {
	c := public.Certificate{
		Hostname: st.Hostname.Name, Configured: st.Configured(), ACMERequested: st.Hostname.ACME, Status: certStatus(st),
		CreatedAt: st.Hostname.CreatedAt, Certificates: []public.IssuedCertificate{}, Validation: validation(st),
		DNSRequirements: public.DNSRequirements{A: []string{}, AAAA: []string{}}, ValidationErrors: []public.ValidationError{},
		Warning: strings.Join(st.Warnings, "; "), Private: st.Private,
	}
	for _, i := range []struct {
		source string
		info   *control.CertInfo
	}{{"custom", st.Uploaded}, {"fly", st.Issued}} {
		if i.info == nil {
			continue
		}
		status := "active"
		if time.Now().After(i.info.NotAfter) {
			status = "expired"
		}
		c.Certificates = append(c.Certificates, public.IssuedCertificate{
			Source: i.source, Status: status, CreatedAt: i.info.NotBefore.UTC(), ExpiresAt: i.info.NotAfter.UTC(), Issuer: i.info.Issuer,
			Issued: []public.IssuedKey{{Type: i.info.KeyType, ExpiresAt: i.info.NotAfter.UTC(), CertificateAuthority: i.info.Issuer}},
		})
	}
	if a := st.Attempt; a.Message != "" {
		c.ValidationErrors = append(c.ValidationErrors, public.ValidationError{Code: a.Code, Message: a.Message, Remediation: a.Remedy, Timestamp: a.At})
		if a.Code == "rate_limited" {
			until := a.Next
			c.RateLimitedUntil = &until
		}
	}
	if st.Hostname.ACME && !st.Obtains && st.Uploaded == nil {
		c.ValidationErrors = append(c.ValidationErrors, public.ValidationError{
			Code: "off", Message: "certificates are not obtained on this platform: acme_ca is off",
			Remediation: "Set acme_ca, or upload a certificate with: roost certs import " + st.Hostname.Name + " --cert FILE --key FILE",
		})
	}
	if !st.Private && strings.HasPrefix(st.Hostname.Name, "*.") && st.Uploaded == nil {
		c.ValidationErrors = append(c.ValidationErrors, public.ValidationError{
			Code: "wildcard", Message: "certificates for wildcards cannot be obtained by HTTP-01 or TLS-ALPN-01",
			Remediation: "Add each hostname by itself, or upload a certificate with: roost certs import '" + st.Hostname.Name + "' --cert FILE --key FILE",
		})
	}
	if d := st.DNS; d != nil {
		c.Validation.DNSConfigured = false // validation by DNS is not built
		c.DNSRecords = &public.DNSRecords{A: list(d.A), AAAA: list(d.AAAA), CNAME: []string{}, ResolvedAddresses: append(list(d.A), d.AAAA...)}
		if d.CNAME != "" {
			c.DNSRecords.CNAME = []string{d.CNAME}
		}
		for _, a := range d.Host {
			if strings.Contains(a, ":") {
				c.DNSRequirements.AAAA = append(c.DNSRequirements.AAAA, a)
			} else {
				c.DNSRequirements.A = append(c.DNSRequirements.A, a)
			}
		}
		if d.Problem != "" {
			c.ValidationErrors = append(c.ValidationErrors, public.ValidationError{Code: "dns", Message: d.Problem, Remediation: d.Remedy, Timestamp: time.Now().UTC()})
		}
	}
	return c
}

// list is never null in JSON.
func list(s []string) []string { return append([]string{}, s...) }
