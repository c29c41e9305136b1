package indexd

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/containerd/errdefs"
	digest "github.com/opencontainers/go-digest"

	"github.com/capelin-io/capelin/control/index"
	"github.com/capelin-io/capelin/control/origin"
	"github.com/capelin-io/capelin/indexd/replicate"
)

// Kinds of objects, and of what is looked at.
type placeKind int

const (
	aStranger placeKind = iota
	aCatalog
	aProof
	aTag
	aManifest
	aBlob
	aReferrer
	aReplication // see package replicate
	aRepository  // that it is in the catalog; its key is the catalog's
)

// place is an object, as its key says.
type place struct {
	kind    placeKind
	key     string
	repo    string        // of those that are in a repository, and of aCatalog in name
	name    string        // of a tag, or of a repository in the catalog
	digest  digest.Digest // of a manifest, a blob, or a referrer
	subject digest.Digest // of a referrer
}

// placeOf reads a key.
func placeOf(key string) place {
	p := place{key: key}
	if strings.HasPrefix(key, provedPrefix) {
		p.kind = aProof
		return p
	}
	if replicate.IsObject(key) {
		p.kind = aReplication
		return p
	}
	if strings.HasPrefix(key, catalogPrefix) {
		if name := catalogName(key); index.CheckRepository(name) == nil && catalogPrefix+catalogPath(name) == key {
			p.kind, p.name = aCatalog, name
		}
		return p
	}
	rest, ok := strings.CutPrefix(key, repoPrefix)
	repo, path, in := strings.Cut(rest, "/_")
	kind, path, deep := strings.Cut(path, "/")
	if !ok || !in || !deep || index.CheckRepository(repo) != nil {
		return p
	}
	p.repo = repo
	var err error
	switch kind {
	case "tags":
		p.name, err = path, index.CheckTag(path)
		p.kind = aTag
	case "manifests":
		p.digest, err = digestOf("", path)
		p.kind = aManifest
	case "blobs":
		p.digest, err = digestOf("", path)
		p.kind = aBlob
	case "referrers":
		p.kind = aReferrer
		i, parts := 0, strings.Split(path, "/")
		if len(parts) != 4 {
			err = errdefs.ErrInvalidArgument
			break
		}
		for _, d := range []*digest.Digest{&p.subject, &p.digest} {
			if err == nil {
				*d, err = digestOf("", parts[i]+"/"+parts[i+1])
			}
			i += 2
		}
	}
	if err != nil {
		p.kind = aStranger
	}
	return p
}

// fault is something that is wrong, and how it is mended; nil: not by an index.
type fault struct {
	index.Finding
	state string // what the object was, if that matters to whether it is the same fault
	mend  func(ctx context.Context) error
}

func (x *fault) id() string { return x.Kind + " " + x.Key + " " + string(x.Digest) + " " + x.state }

// faults collects those of a place.
type faults struct {
	p   place
	all []fault
}

func (l *faults) add(kind string, d digest.Digest, mend string, do func(ctx context.Context) error, format string, args ...any) {
	if do == nil {
		mend = ""
	}
	tag := ""
	if l.p.kind == aTag {
		tag = l.p.name
	}
	repo := l.p.repo
	if l.p.kind == aCatalog {
		repo = l.p.name
	}
	l.all = append(l.all, fault{mend: do, Finding: index.Finding{Kind: kind, Repository: repo, Tag: tag, Digest: d, Key: l.p.key,
		Text: fmt.Sprintf(format, args...), Mend: mend}})
}

// looks looks at an object. An error means that it could not.
func (f *fsck) looks(ctx context.Context, p place) ([]fault, error) {
	l := &faults{p: p}
	var err error
	switch p.kind {
	case aStranger:
		l.add("stranger", "", "", nil, "no index has written an object of that name")
	case aProof:
		var o proofObject
		err = f.read(ctx, l, &o, func() bool { return proofKey(o.Storage) == p.key }, "", nil)
	case aReplication:
		var o referrerObject // of all that is in it, only its version
		err = f.read(ctx, l, &o, func() bool { return true }, "", nil)
	case aCatalog:
		var o catalogObject
		err = f.read(ctx, l, &o, func() bool { return o.Repository == p.name }, "write it anew",
			f.rewrite(p, &catalogObject{formatVersion, p.name}))
	case aRepository:
		err = f.repository(ctx, l)
	case aTag:
		err = f.tag(ctx, l)
	case aManifest:
		err = f.manifest(ctx, l)
	case aBlob:
		err = f.blob(ctx, l)
	case aReferrer:
		err = f.referrer(ctx, l)
	}
	if errors.Is(err, errNothing) {
		err = nil
	}
	return l.all, err
}

// errNothing ends a look: the object is gone, or is a fault itself.
var errNothing = errors.New("nothing more to look at")

// read reads an object of a place; right says whether it is what its key says.
func (f *fsck) read(
	ctx context.Context, l *faults, into any, right func() bool, mend string, do func(ctx context.Context) error,
) error {
	info, err := f.x.read(ctx, l.p.key, into)
	switch {
	case errdefs.IsNotFound(err):
		return errNothing // deleted meanwhile
	case errors.Is(err, errNewer):
		l.add("newer", "", "", nil, "%v", err)
		return errNothing
	case errdefs.IsDataLoss(err):
		if l.p.kind == aTag {
			err = fmt.Errorf("%w; put it back from a backup, or delete the object and push the tag again: its revisions then begin anew", err)
		}
		l.add("damaged", l.p.digest, mend, do, "%v", err)
		l.all[len(l.all)-1].state = info.Version
		return errNothing
	case err == nil && !right():
		l.add("damaged", l.p.digest, mend, do, "the object is about something else than its name says")
		l.all[len(l.all)-1].state = info.Version
		return errNothing
	}
	return err
}

func (f *fsck) there(ctx context.Context, key string) (bool, error) {
	if ok, _ := f.links.Get(key); ok {
		return true, nil
	}
	is, err := f.x.exists(ctx, key)
	if is {
		f.links.Add(key, true)
	}
	return is, err
}

// lacking says why the origins have no such blob: "" if they have it. A negative size is any.
func (f *fsck) lacking(ctx context.Context, repo string, d digest.Digest, size int64) (why string, err error) {
	has, ok := f.blobs.Get(string(d))
	if !ok {
		info, err := f.x.origins.Stat(ctx, origin.Ref{Namespace: repo, Digest: d})
		switch {
		case errdefs.IsNotFound(err):
			if known, _ := f.gone.ContainsOrAdd(string(d), true); !known {
				f.lacks.Add(1)
			}
			return noOrigin, nil
		case err != nil:
			return "", originError(d, err)
		}
		f.has.Add(1)
		has = info.Size
		f.blobs.Add(string(d), has)
	}
	if size >= 0 && has != size {
		return fmt.Sprintf("an origin has it with %d bytes, not %d", has, size), nil
	}
	return "", nil
}

func (f *fsck) repository(ctx context.Context, l *faults) error {
	is, err := f.x.exists(ctx, l.p.key)
	if err != nil || is {
		return err
	}
	page, _, err := f.x.list(ctx, manifestsPrefix(l.p.repo), "", 1)
	if err == nil && len(page) > 0 {
		l.add("catalog-lacks", "", "add it to the catalog", f.catalogue(l.p), "the repository has manifests, and is not in the catalog")
	}
	return err
}

func (f *fsck) tag(ctx context.Context, l *faults) error {
	p := l.p
	var t tagObject
	err := f.read(ctx, l, &t, func() bool {
		return t.Repository == p.repo && t.Name == p.name && t.Revision > 0 && (t.Deleted || t.Descriptor.Digest.Validate() == nil)
	}, "", nil)
	if err != nil || t.Deleted {
		return err
	}
	d := t.Descriptor.Digest
	f.reached.tagged(d)
	is, err := f.x.exists(ctx, manifestKey(p.repo, d))
	if err == nil && !is {
		l.add("tag-dangles", d, "record the manifest anew, if all of it is at the origins; else delete the tag", f.retag(p, d, t.Revision),
			"the tag names manifest %s, which the repository does not have", d)
		l.all[len(l.all)-1].state = fmt.Sprint(t.Revision)
	}
	return err
}

func (f *fsck) manifest(ctx context.Context, l *faults) error {
	p := l.p
	var o manifestObject
	m := &o.Manifest
	err := f.read(ctx, l, &o, func() bool { return m.Descriptor.Digest == p.digest }, "record it anew from its bytes",
		f.remake(p.repo, p.digest))
	if err != nil {
		return err
	}
	why, err := f.lacking(ctx, p.repo, p.digest, m.Descriptor.Size)
	if err != nil {
		return err
	}
	if why != "" {
		l.add("manifest-gone", p.digest, "", nil, "the manifest's bytes are missing: %s; push it again", why)
	}
	for _, b := range m.Blobs {
		if !index.NeedsBlob(b) {
			continue
		}
		if why, err = f.lacking(ctx, p.repo, b.Digest, b.Size); err != nil {
			return err
		}
		if why != "" {
			l.add("blob-gone", b.Digest, "", nil, "manifest %s needs blob %s: %s; push it again", p.digest, b.Digest, why)
			continue
		}
		linked, err := f.there(ctx, blobKey(p.repo, b.Digest))
		if err == nil && !linked {
			linked, err = f.x.exists(ctx, manifestKey(p.repo, b.Digest))
		}
		if err != nil {
			return err
		}
		if !linked {
			l.add("link-lacks", b.Digest, "link it", func(ctx context.Context) error { return f.x.LinkBlob(ctx, p.repo, b) },
				"manifest %s needs blob %s, which the repository does not have, and an origin does", p.digest, b.Digest)
		}
	}
	for _, c := range m.Manifests {
		f.reached.by(c.Digest)
		is, err := f.x.exists(ctx, manifestKey(p.repo, c.Digest))
		if err != nil {
			return err
		}
		if !is {
			l.add("child-lacks", c.Digest, "record it anew from its bytes, if all of it is at the origins", f.remake(p.repo, c.Digest),
				"index %s lists manifest %s, which the repository does not have", p.digest, c.Digest)
		}
	}
	if m.Subject == nil {
		return nil
	}
	f.reached.by(p.digest)
	is, err := f.x.exists(ctx, referrerKey(p.repo, m.Subject.Digest, p.digest))
	if err == nil && !is {
		l.add("referrer-lacks", m.Subject.Digest, "add it", f.refer(p.repo, m),
			"manifest %s is not among the referrers of its subject %s", p.digest, m.Subject.Digest)
	}
	return err
}

func (f *fsck) blob(ctx context.Context, l *faults) error {
	p := l.p
	var o blobObject
	err := f.read(ctx, l, &o, func() bool { return o.Descriptor.Digest == p.digest }, "link it anew, without its media type", f.relink(p))
	if err != nil {
		return err
	}
	f.links.Add(p.key, true)
	why, err := f.lacking(ctx, p.repo, p.digest, o.Descriptor.Size)
	if err == nil && why != "" {
		l.add("link-dangles", p.digest, "unlink it", f.unlink(p), "the repository has blob %s, and %s", p.digest, why)
	}
	return err
}

func (f *fsck) referrer(ctx context.Context, l *faults) error {
	p := l.p
	var o referrerObject
	err := f.read(ctx, l, &o, func() bool { return true }, "write it anew", f.rewrite(p, &referrerObject{formatVersion}))
	if err != nil {
		return err
	}
	leads, err := f.leads(ctx, p)
	if err == nil && !leads {
		l.add("referrer-dangles", p.digest, "remove it", f.unrefer(p),
			"%s is listed as a referrer of %s, and is no manifest of the repository that has it as its subject", p.digest, p.subject)
	}
	return err
}

// leads reports whether a referrer's entry leads to a manifest with that subject. One that cannot be read is a fault of its own.
func (f *fsck) leads(ctx context.Context, p place) (bool, error) {
	m, err := f.x.Manifest(ctx, p.repo, p.digest)
	switch {
	case errdefs.IsNotFound(err):
		return false, nil
	case errdefs.IsDataLoss(err):
		return true, nil
	}
	return m.Subject != nil && m.Subject.Digest == p.subject, err
}
