package wire

import (
	"encoding/json"
	"maps"
	"slices"

	root "github.com/roost-run/roost"
)

// processSecret is a secret that a process gets, and the name of its variable.
type processSecret struct {
	EnvVar string `json:"env_var"`
	Name   string `json:"name"`
}

// toProcessSecrets reads processes[].secrets; nil if it names none. Without
// env_var the variable has the secret's name.
func toProcessSecrets(raw json.RawMessage) (map[string]string, error) {
	if !given(raw) {
		return nil, nil
	}
	var list []processSecret
	if json.Unmarshal(raw, &list) != nil {
		return nil, root.Errorf(root.Invalid, "config.processes[0].secrets: want a list such as [{\"env_var\": \"KEY\", \"name\": \"SECRET_KEY\"}]")
	}
	out := make(map[string]string, len(list))
	for i, s := range list {
		if s.EnvVar == "" {
			s.EnvVar = s.Name
		}
		if err := root.ValidateSecret(s.EnvVar, ""); err != nil || s.Name == "" {
			return nil, root.Errorf(root.Invalid, "config.processes[0].secrets[%d]: name a secret, and an env_var of letters, digits and underscores that is not the platform's own", i)
		}
		out[s.EnvVar] = s.Name
	}
	return out, nil
}

func fromProcessSecrets(secrets map[string]string) json.RawMessage {
	if len(secrets) == 0 {
		return nil
	}
	list := make([]processSecret, 0, len(secrets))
	for _, env := range slices.Sorted(maps.Keys(secrets)) {
		list = append(list, processSecret{EnvVar: env, Name: secrets[env]})
	}
	raw, err := json.Marshal(list)
	if err != nil {
		panic(err) // strings can always be written
	}
	return raw
}
