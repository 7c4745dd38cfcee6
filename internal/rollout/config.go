package rollout

import (
	"bytes"
	"maps"
	"reflect"
	"strconv"

	root "github.com/roost-run/roost"
)

// Target is what a machine is to become.
type Target struct {
	Config  root.Config
	Source  []byte
	Image   root.Image
	Secrets int
}

// TargetOf says what m becomes in release r; m nil is a new machine of group g.
// A group's config replaces a machine's; what deploys do not say stays the
// machine's ("fly.toml", section 6): its size unless the group names one, its
// name service, auto_destroy, processes and foreign metadata. In a release
// that only restarts (new secrets) a machine keeps all of its own.
func TargetOf(r *root.Release, g *root.Group, m *root.Machine) Target {
	t := Target{Config: g.Config.Clone(), Source: g.Source, Image: r.Image, Secrets: r.Secrets}
	c := &t.Config
	if m != nil {
		was := m.Spec.Config.Clone()
		if r.Deploy.Restart {
			t.Config, t.Source, t.Image = was, m.Spec.Source, m.Spec.Image
		} else {
			if !g.Sized {
				c.Guest = was.Guest
			}
			c.DNS, c.AutoDestroy, c.Process = was.DNS, was.AutoDestroy, was.Process
			metadata := maps.Clone(was.Metadata)
			if metadata == nil {
				metadata = map[string]string{}
			}
			maps.Copy(metadata, c.Metadata)
			c.Metadata = metadata
		}
	}
	if c.Metadata == nil {
		c.Metadata = map[string]string{}
	}
	delete(c.Metadata, root.MetadataCanary)
	delete(c.Metadata, root.MetadataBlueGreenTag)
	delete(c.Metadata, MetadataBlue)
	c.Metadata[root.MetadataPlatform] = root.PlatformManaged
	c.Metadata[root.MetadataProcessGroup] = g.Name
	c.Metadata[root.MetadataReleaseID] = string(r.ID)
	c.Metadata[root.MetadataReleaseVersion] = strconv.Itoa(r.Version)
	if c.Env == nil {
		c.Env = map[string]string{}
	}
	c.Env["FLY_PROCESS_GROUP"] = g.Name
	if g.Region != "" && !r.Deploy.Restart {
		c.Env["PRIMARY_REGION"] = string(g.Region)
	}
	c.Image = t.Image.Ref()
	return t
}

// Same reports whether m is what t says already, apart from the release that
// its metadata name: nothing of it has to be started again.
func (t *Target) Same(m *root.Machine) bool {
	if m.Spec.Image.Digest != t.Image.Digest || m.Spec.Secrets != t.Secrets || m.Spec.Release == 0 || !bytes.Equal(m.Spec.Source, t.Source) {
		return false
	}
	a, b := t.Config.Clone(), m.Spec.Config.Clone()
	a.Image, b.Image = "", ""
	plain(a.Metadata)
	plain(b.Metadata)
	return reflect.DeepEqual(normal(a), normal(b))
}

func plain(metadata map[string]string) {
	delete(metadata, root.MetadataReleaseID)
	delete(metadata, root.MetadataReleaseVersion)
	delete(metadata, root.MetadataBlueGreenTag)
	delete(metadata, MetadataBlue)
}

// normal makes configs comparable: a stored one has nil where another has an
// empty list or map.
func normal(c root.Config) root.Config {
	v := reflect.ValueOf(&c).Elem()
	empty(v)
	return c
}

func empty(v reflect.Value) {
	switch v.Kind() {
	case reflect.Struct:
		for _, field := range v.Fields() {
			if field.CanSet() {
				empty(field)
			}
		}
	case reflect.Slice:
		if v.Len() == 0 {
			v.SetZero()
			return
		}
		copied := reflect.MakeSlice(v.Type(), v.Len(), v.Len())
		reflect.Copy(copied, v)
		for i := range copied.Len() {
			empty(copied.Index(i))
		}
		v.Set(copied)
	case reflect.Map:
		if v.Len() == 0 {
			v.SetZero()
			return
		}
		if k := v.Type().Elem().Kind(); k != reflect.Struct && k != reflect.Slice {
			return
		}
		copied := reflect.MakeMapWithSize(v.Type(), v.Len())
		for it := v.MapRange(); it.Next(); {
			e := reflect.New(v.Type().Elem()).Elem()
			e.Set(it.Value())
			empty(e)
			copied.SetMapIndex(it.Key(), e)
		}
		v.Set(copied)
	case reflect.Pointer:
		if v.IsNil() {
			return
		}
		copied := reflect.New(v.Type().Elem())
		copied.Elem().Set(v.Elem())
		empty(copied.Elem())
		v.Set(copied)
	}
}
