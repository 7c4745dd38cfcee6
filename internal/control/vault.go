package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/seal"
	"github.com/roost-run/roost/internal/state"
)

// Vault opens what is sealed in the store. It asks nobody for permission: it
// is for the agent, which injects secrets, for builds, and for whoever masks
// them. What it returns must go nowhere else.
type Vault struct {
	Store *state.Store
	Keys  *seal.Keyring
}

// Open returns the values of one version of an app's secrets; version 0 has
// none. A version that has been pruned gives NotFound, a key that is missing
// Unavailable.
func (v *Vault) Open(ctx context.Context, app root.AppName, version int) (map[string]string, error) {
	if version == 0 {
		return nil, nil
	}
	set, err := v.Store.Secrets(ctx, app, version)
	if err != nil {
		return nil, err
	}
	return v.open(set)
}

func (v *Vault) open(set root.SecretSet) (map[string]string, error) {
	values := map[string]string{}
	if len(set.Secrets) == 0 {
		return values, nil
	}
	plain, err := v.Keys.Open(set.Sealed, sealContext(set.App, set.Version))
	if err != nil {
		return nil, fmt.Errorf("secrets of %s, version %d: %w", set.App, set.Version, err)
	}
	if json.Unmarshal(plain, &values) != nil { // its error would quote what it read
		return nil, fmt.Errorf("secrets of %s, version %d: what was sealed is not readable", set.App, set.Version)
	}
	return values, nil
}

func (v *Vault) seal(app root.AppName, version int, values map[string]string) ([]byte, error) {
	plain, err := json.Marshal(values)
	if err != nil {
		return nil, errors.New("secrets cannot be written as JSON")
	}
	return v.Keys.Seal(plain, sealContext(app, version))
}

func sealContext(app root.AppName, version int) []byte {
	return []byte("secrets\x00" + string(app) + "\x00" + strconv.Itoa(version))
}

// Scrubber masks the values of these versions of an app's secrets. A version
// that has been pruned has nothing left to show and is passed over.
func (v *Vault) Scrubber(ctx context.Context, app root.AppName, versions ...int) (*seal.Scrubber, error) {
	var values []string
	versions = slices.Clone(versions)
	slices.Sort(versions)
	for _, version := range slices.Compact(versions) {
		opened, err := v.Open(ctx, app, version)
		if root.IsKind(err, root.NotFound) {
			continue
		}
		if err != nil {
			return nil, err
		}
		values = slices.AppendSeq(values, maps.Values(opened))
	}
	return seal.NewScrubber(values...), nil
}
