package state

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	root "github.com/roost-run/roost"
)

var update = flag.Bool("update", false, "rewrite golden files of the newest versions")

// fill sets every field below v to a value of its own.
func fill(t *testing.T, v reflect.Value, n *int) {
	t.Helper()
	*n++
	if v.Type() == reflect.TypeFor[time.Time]() {
		v.Set(reflect.ValueOf(time.Date(2026, 1, 1, 0, 0, 0, *n*1000, time.UTC)))
		return
	}
	switch v.Kind() {
	case reflect.String:
		v.SetString(fmt.Sprint("s", *n))
	case reflect.Int, reflect.Int64:
		v.SetInt(int64(*n))
	case reflect.Float64:
		v.SetFloat(float64(*n))
	case reflect.Uint8:
		v.SetUint(uint64(*n % 251))
	case reflect.Uint32, reflect.Uint64:
		v.SetUint(uint64(*n))
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 2, 2))
		fill(t, v.Index(0), n)
		fill(t, v.Index(1), n)
	case reflect.Array:
		for i := range v.Len() {
			fill(t, v.Index(i), n)
		}
	case reflect.Map:
		v.Set(reflect.MakeMap(v.Type()))
		key, value := reflect.New(v.Type().Key()).Elem(), reflect.New(v.Type().Elem()).Elem()
		fill(t, key, n)
		fill(t, value, n)
		v.SetMapIndex(key, value)
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(t, v.Elem(), n)
	case reflect.Struct:
		for _, field := range v.Fields() {
			fill(t, field, n)
		}
	default:
		t.Fatalf("fill cannot set a %s: teach it", v.Type())
	}
}

func filled[T any](t *testing.T) T {
	t.Helper()
	var v T
	n := 0
	fill(t, reflect.ValueOf(&v).Elem(), &n)
	return v
}

// kinds of records: how each is written and read.
var kinds = []struct {
	name    string
	version int
	full    func(*testing.T) any      // with every field set
	encode  func(any) string          // as stored
	decode  func([]byte) (any, error) // as read
}{
	{"org", orgVersion, func(t *testing.T) any { return filled[root.Org](t) },
		func(v any) string { return encode(fromOrg(v.(root.Org))) },
		func(d []byte) (any, error) { var r orgRecord; err := decode(d, orgVersion, &r); return r.root(), err }},
	{"app", appVersion, func(t *testing.T) any { return filled[root.App](t) },
		func(v any) string { return encode(fromApp(v.(root.App))) },
		func(d []byte) (any, error) { var r appRecord; err := decode(d, appVersion, &r); return r.root(), err }},
	{"network", networkVersion, func(t *testing.T) any { return filled[root.Network](t) },
		func(v any) string { return encode(fromNetwork(v.(root.Network))) },
		func(d []byte) (any, error) {
			var r networkRecord
			err := decode(d, networkVersion, &r)
			return r.root(), err
		}},
	{"host", hostVersion, func(t *testing.T) any { return filled[root.Host](t) },
		func(v any) string { return encode(fromHost(v.(root.Host))) },
		func(d []byte) (any, error) { var r hostRecord; err := decode(d, hostVersion, &r); return r.root(), err }},
	{"token", tokenVersion, func(t *testing.T) any { return filled[root.Token](t) },
		func(v any) string { return encode(fromToken(v.(root.Token))) },
		func(d []byte) (any, error) {
			var r tokenRecord
			err := decode(d, tokenVersion, &r)
			n, full := 0, root.Token{}
			fill(&testing.T{}, reflect.ValueOf(&full).Elem(), &n)
			return r.root(full.Hash), err // the hash is the key
		}},
	{"secrets", secretsVersion, func(t *testing.T) any {
		set := filled[root.SecretSet](t)
		for i := range set.Secrets {
			set.Secrets[i].Staged = false // reads fill it in
		}
		return set
	},
		func(v any) string { return encode(fromSecrets(v.(root.SecretSet))) },
		func(d []byte) (any, error) {
			var r secretsRecord
			err := decode(d, secretsVersion, &r)
			return r.root(), err
		}},
	{"hostname", hostnameVersion, func(t *testing.T) any { return filled[root.Hostname](t) },
		func(v any) string { return encode(fromHostname(v.(root.Hostname))) },
		func(d []byte) (any, error) {
			var r hostnameRecord
			err := decode(d, hostnameVersion, &r)
			return r.root(), err
		}},
	{"upload", uploadVersion, func(t *testing.T) any { return filled[root.Upload](t) },
		func(v any) string { return encode(fromUpload(v.(root.Upload))) },
		func(d []byte) (any, error) {
			var r uploadRecord
			err := decode(d, uploadVersion, &r)
			return r.root(), err
		}},
	{"attempt", attemptVersion, func(t *testing.T) any { return filled[root.CertAttempt](t) },
		func(v any) string { return encode(fromAttempt(v.(root.CertAttempt))) },
		func(d []byte) (any, error) {
			var r attemptRecord
			err := decode(d, attemptVersion, &r)
			return r.root(), err
		}},
	{"acme", acmeVersion, func(*testing.T) any { return acmeRecord{acmeVersion, now, []byte("sealed")} },
		func(v any) string {
			r := v.(acmeRecord)
			r.V = acmeVersion
			return encode(r)
		},
		func(d []byte) (any, error) {
			var r acmeRecord
			err := decode(d, acmeVersion, &r)
			if r.Value == nil && r.Modified.IsZero() {
				r.V = 0 // the zero value
			}
			return r, err
		}},
	{"lock", lockVersion, func(*testing.T) any { return lockRecord{lockVersion, "5e1f00aa", "01RUN", now} },
		func(v any) string {
			r := v.(lockRecord)
			r.V = lockVersion
			return encode(r)
		},
		func(d []byte) (any, error) {
			var r lockRecord
			err := decode(d, lockVersion, &r)
			if r.Host == "" {
				r.V = 0
			}
			return r, err
		}},
	{"lease", leaseVersion, func(t *testing.T) any { return filled[root.Lease](t) },
		func(v any) string { return encode(fromLease(v.(root.Lease))) },
		func(d []byte) (any, error) {
			var r leaseRecord
			err := decode(d, leaseVersion, &r)
			return r.root(), err
		}},
	{"release", releaseVersion, func(t *testing.T) any {
		r := filled[root.Release](t)
		r.Progress = root.Progress{} // a record of its own
		return r
	},
		func(v any) string { return encode(fromRelease(v.(root.Release))) },
		func(d []byte) (any, error) {
			var r releaseRecord
			err := decode(d, releaseVersion, &r)
			return r.root(), err
		}},
	{"progress", progressVersion, func(t *testing.T) any { return filled[root.Progress](t) },
		func(v any) string { return encode(fromProgress(v.(root.Progress))) },
		func(d []byte) (any, error) {
			var r progressRecord
			err := decode(d, progressVersion, &r)
			return r.root(), err
		}},
	{"rollout", rolloutVersion, func(t *testing.T) any { return filled[root.Rollout](t) },
		func(v any) string { return encode(fromRollout(v.(root.Rollout))) },
		func(d []byte) (any, error) {
			var r rolloutRecord
			err := decode(d, rolloutVersion, &r)
			return r.root(), err
		}},
	{"release_event", releaseEventVersion, func(t *testing.T) any { return filled[root.ReleaseEvent](t) },
		func(v any) string { return encode(fromReleaseEvent(v.(root.ReleaseEvent))) },
		func(d []byte) (any, error) {
			var r releaseEventRecord
			err := decode(d, releaseEventVersion, &r)
			return r.root(), err
		}},
	{"status", statusVersion, func(t *testing.T) any { return filled[root.Status](t) },
		func(v any) string { return encode(fromStatus(v.(root.Status))) },
		func(d []byte) (any, error) {
			var r statusRecord
			err := decode(d, statusVersion, &r)
			return r.root(), err
		}},
	{"spec", specVersion, func(t *testing.T) any {
		m := filled[root.Machine](t)
		m.Status, m.Lease = root.Status{}, nil // records of their own
		return m
	},
		func(v any) string { return encode(fromMachine(v.(root.Machine), []uint32{1, 2})) },
		func(d []byte) (any, error) {
			var r specRecord
			err := decode(d, specVersion, &r)
			return *r.root(), err
		}},
	{"tombstone", graveVersion, func(t *testing.T) any {
		m := filled[root.Machine](t)
		m.Status.State, m.Lease = root.StateDestroyed, nil
		return m
	},
		func(v any) string {
			m := v.(root.Machine)
			return encode(graveRecord{graveVersion, fromMachine(m, nil), fromStatus(m.Status)})
		},
		func(d []byte) (any, error) {
			var r graveRecord
			err := decode(d, graveVersion, &r)
			return *r.root(), err
		}},
}

// TestRecordsKeepEveryField fails when a field is added to the domain and
// forgotten in a record.
func TestRecordsKeepEveryField(t *testing.T) {
	for _, k := range kinds {
		t.Run(k.name, func(t *testing.T) {
			want := k.full(t)
			got, err := k.decode([]byte(k.encode(want)))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("lost or changed (-want +got):\n%s", diff)
			}
			zero := reflect.Zero(reflect.TypeOf(want)).Interface()
			got, err = k.decode([]byte(k.encode(zero)))
			if err != nil {
				t.Fatal(err)
			}
			if k.name == "token" || k.name == "tombstone" {
				return // they have a part that does not come from the record
			}
			if diff := cmp.Diff(zero, got); diff != "" {
				t.Errorf("the zero value changed (-want +got):\n%s", diff)
			}
		})
	}
}

// TestGoldenRecords reads a record of every version ever released, and checks
// that the newest is written as it was.
func TestGoldenRecords(t *testing.T) {
	for _, k := range kinds {
		t.Run(k.name, func(t *testing.T) {
			var indented bytes.Buffer
			if err := json.Indent(&indented, []byte(k.encode(k.full(t))), "", "  "); err != nil {
				t.Fatal(err)
			}
			indented.WriteByte('\n')
			newest := filepath.Join("testdata", fmt.Sprintf("%s.v%d.golden.json", k.name, k.version))
			if *update {
				if err := os.WriteFile(newest, indented.Bytes(), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			for v := 1; v <= k.version; v++ {
				data, err := os.ReadFile(filepath.Join("testdata", fmt.Sprintf("%s.v%d.golden.json", k.name, v)))
				if err != nil {
					t.Fatal(err)
				}
				got, err := k.decode(data)
				if err != nil {
					t.Errorf("version %d: %v", v, err)
				}
				if v < k.version {
					continue
				}
				if diff := cmp.Diff(k.full(t), got); diff != "" {
					t.Errorf("version %d reads differently (-want +got):\n%s", v, diff)
				}
				if diff := cmp.Diff(string(data), indented.String()); diff != "" {
					t.Errorf("version %d is written differently; a member that joins is fine (-update), one that changes needs a new version (-want +got):\n%s", v, diff)
				}
			}
		})
	}
}

func TestDecodeRefuses(t *testing.T) {
	for name, data := range map[string]string{
		"empty": "", "torn": `{"v":1,"name":"sh`, "newer": `{"v":99,"name":"shop"}`, "no version": `{"name":"shop"}`, "no object": `[]`, "other types": `{"v":1,"name":7}`,
	} {
		var r appRecord
		if err := decode([]byte(data), appVersion, &r); err == nil {
			t.Errorf("%s: got %+v, want an error", name, r)
		}
	}
}

func TestAbsurdTime(t *testing.T) {
	l := root.Lease{ExpiresAt: now.Add(1<<62).Add(1<<62).Add(1<<62).AddDate(20_000, 0, 0)}
	if got := fromLease(l).root().ExpiresAt.Year(); got != 9999 {
		t.Errorf("got year %d, want 9999", got)
	}
	if data := encode(fromLease(l)); data == "" {
		t.Error("got no record")
	}
}

func FuzzRecords(f *testing.F) {
	files, err := filepath.Glob("testdata/*.golden.json")
	if err != nil || len(files) == 0 {
		f.Fatalf("no seeds: %v", err)
	}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, k := range kinds {
			v, err := k.decode(data)
			if err != nil {
				continue
			}
			// What was read is written and read back the same.
			again, err := k.decode([]byte(k.encode(v)))
			if err != nil {
				t.Fatalf("%s: %v", k.name, err)
			}
			if a, b := k.encode(v), k.encode(again); a != b {
				t.Errorf("%s: got %s, want %s", k.name, b, a)
			}
		}
	})
}
