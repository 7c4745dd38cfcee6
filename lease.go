package roost

import "time"

// Lease is an exclusive, expiring lock on one machine.
type Lease struct {
	Nonce       string // 12 hex digits; proves that the caller holds it
	ExpiresAt   time.Time
	Owner       string // for people: "admin", "deploy@shop"
	Description string
	Version     InstanceID
}
