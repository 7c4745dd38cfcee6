package machines

import (
	"context"
	"net/http"
	"net/url"
	"time"
)

// Certificate is a hostname of an app's own with what is known of its
// certificates ("Certificates" of the Machines API).
type Certificate struct {
	Hostname         string              `json:"hostname"`
	Configured       bool                `json:"configured"`
	ACMERequested    bool                `json:"acme_requested"`
	Status           string              `json:"status"` // "active", "pending_validation"
	DNSProvider      string              `json:"dns_provider"`
	RateLimitedUntil *time.Time          `json:"rate_limited_until"`
	CreatedAt        time.Time           `json:"created_at,omitzero"`
	Certificates     []IssuedCertificate `json:"certificates"`
	Validation       Validation          `json:"validation"`
	DNSRequirements  DNSRequirements     `json:"dns_requirements"`
	ValidationErrors []ValidationError   `json:"validation_errors"`
	DNSRecords       *DNSRecords         `json:"dns_records,omitempty"` // of a check
	Warning          string              `json:"warning,omitempty"`
	// Private is ours: the local authority issues for the name, so that only
	// those who trust it connect without a warning.
	Private bool `json:"private,omitempty"`
}

// IssuedCertificate is one certificate of a hostname.
type IssuedCertificate struct {
	Source    string      `json:"source"` // "custom" (uploaded) or "fly" (obtained by the platform)
	Status    string      `json:"status"` // "active", "expired"
	CreatedAt time.Time   `json:"created_at"`
	ExpiresAt time.Time   `json:"expires_at"`
	Issuer    string      `json:"issuer"`
	Issued    []IssuedKey `json:"issued"`
}

// IssuedKey says what kind of key a certificate is for.
type IssuedKey struct {
	Type                 string    `json:"type"` // "rsa", "ecdsa"
	ExpiresAt            time.Time `json:"expires_at"`
	CertificateAuthority string    `json:"certificate_authority"`
}

// Validation is which ways of proving the hostname work.
type Validation struct {
	DNSConfigured          bool `json:"dns_configured"`
	ALPNConfigured         bool `json:"alpn_configured"`
	HTTPConfigured         bool `json:"http_configured"`
	OwnershipTXTConfigured bool `json:"ownership_txt_configured"`
}

// DNSRequirements are the records that make a hostname lead here.
type DNSRequirements struct {
	A             []string      `json:"a"`
	AAAA          []string      `json:"aaaa"`
	CNAME         string        `json:"cname"`
	ACMEChallenge DNSChallenge  `json:"acme_challenge"`
	Ownership     *DNSOwnership `json:"ownership,omitempty"`
}

// DNSChallenge is a record for validation by DNS.
type DNSChallenge struct {
	Name   string `json:"name"`
	Target string `json:"target"`
}

// DNSOwnership is a record that proves whose a hostname is.
type DNSOwnership struct {
	Name     string `json:"name"`
	AppValue string `json:"app_value"`
	OrgValue string `json:"org_value"`
}

// DNSRecords are the records that a check found.
type DNSRecords struct {
	A                  []string `json:"a"`
	AAAA               []string `json:"aaaa"`
	CNAME              []string `json:"cname"`
	ACMEChallengeCNAME string   `json:"acme_challenge_cname,omitempty"`
	OwnershipTXT       string   `json:"ownership_txt,omitempty"`
	ResolvedAddresses  []string `json:"resolved_addresses"`
	SOA                string   `json:"soa,omitempty"`
}

// ValidationError is why a certificate could not be obtained, or why the
// hostname does not lead here.
type ValidationError struct {
	Code        string    `json:"code"`
	Message     string    `json:"message"`
	Remediation string    `json:"remediation"`
	Timestamp   time.Time `json:"timestamp"`
}

// CertificateSummary is a hostname in a list.
type CertificateSummary struct {
	Hostname               string    `json:"hostname"`
	Status                 string    `json:"status"`
	Configured             bool      `json:"configured"`
	ACMERequested          bool      `json:"acme_requested"`
	ACMEDNSConfigured      bool      `json:"acme_dns_configured"`
	ACMEALPNConfigured     bool      `json:"acme_alpn_configured"`
	ACMEHTTPConfigured     bool      `json:"acme_http_configured"`
	OwnershipTXTConfigured bool      `json:"ownership_txt_configured"`
	HasCustomCertificate   bool      `json:"has_custom_certificate"`
	HasFlyCertificate      bool      `json:"has_fly_certificate"`
	DNSProvider            string    `json:"dns_provider"`
	CreatedAt              time.Time `json:"created_at"`
	UpdatedAt              time.Time `json:"updated_at"`
	Private                bool      `json:"private,omitempty"` // ours
}

func certificatesPath(app, rest string) string {
	return "/v1/apps/" + url.PathEscape(app) + "/certificates" + rest
}

func certificatePath(app, hostname, rest string) string {
	return certificatesPath(app, "/"+url.PathEscape(hostname)+rest)
}

// Certificates lists an app's hostnames.
func (c *Client) Certificates(ctx context.Context, app string) ([]CertificateSummary, error) {
	var all []CertificateSummary
	for cursor := ""; ; {
		var page struct {
			Certificates []CertificateSummary `json:"certificates"`
			NextCursor   string               `json:"next_cursor"`
		}
		q := url.Values{"limit": {"500"}}
		if cursor != "" {
			q.Set("cursor", cursor)
		}
		if err := c.Do(ctx, http.MethodGet, certificatesPath(app, "?"+q.Encode()), nil, &page); err != nil {
			return nil, err
		}
		all = append(all, page.Certificates...)
		if cursor = page.NextCursor; cursor == "" {
			return all, nil
		}
	}
}

// AddCertificate makes a hostname lead to an app and has a certificate obtained.
func (c *Client) AddCertificate(ctx context.Context, app, hostname string) (Certificate, error) {
	var out Certificate
	return out, c.Do(ctx, http.MethodPost, certificatesPath(app, "/acme"), map[string]string{"hostname": hostname}, &out)
}

// ImportCertificate uploads a certificate with its key, PEM.
func (c *Client) ImportCertificate(ctx context.Context, app, hostname, fullchain, key string) (Certificate, error) {
	var out Certificate
	in := map[string]string{"hostname": hostname, "fullchain": fullchain, "private_key": key}
	return out, c.Do(ctx, http.MethodPost, certificatesPath(app, "/custom"), in, &out)
}

// Certificate returns what is known of a hostname.
func (c *Client) Certificate(ctx context.Context, app, hostname string) (Certificate, error) {
	var out Certificate
	return out, c.Do(ctx, http.MethodGet, certificatePath(app, hostname, ""), nil, &out)
}

// CheckCertificate also finds out where the hostname leads.
func (c *Client) CheckCertificate(ctx context.Context, app, hostname string) (Certificate, error) {
	var out Certificate
	return out, c.Do(ctx, http.MethodPost, certificatePath(app, hostname, "/check"), nil, &out)
}

// RemoveCertificate takes a hostname away from an app, with its certificates.
func (c *Client) RemoveCertificate(ctx context.Context, app, hostname string) error {
	return c.Do(ctx, http.MethodDelete, certificatePath(app, hostname, ""), nil, nil)
}

// RemoveImportedCertificate forgets an uploaded certificate; the hostname stays.
func (c *Client) RemoveImportedCertificate(ctx context.Context, app, hostname string) (Certificate, error) {
	var out Certificate
	return out, c.Do(ctx, http.MethodDelete, certificatePath(app, hostname, "/custom"), nil, &out)
}
