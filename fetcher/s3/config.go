package s3

import (
	"cmp"
	"net/url"
	"strings"
	"unicode/utf8"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"github.com/capelin-io/capelin/fetcher"
	"github.com/capelin-io/capelin/internal/daemon/config"
)

// Config is a bucket, or the part of one below a prefix.
type Config struct {
	Bucket       string       `toml:"bucket" comment:"Name of the bucket, which must be there."`
	Prefix       string       `toml:"prefix" comment:"Put before the name of each object, such as \"capelin/\"; everything there belongs to Capelin. It ends in \"/\". Empty: nothing."`
	Region       string       `toml:"region" comment:"Region of the bucket. Empty: that of the environment (AWS_REGION) or the profile; with an endpoint, \"us-east-1\" if they have none."`
	Endpoint     string       `toml:"endpoint" comment:"URL of a storage that is not AWS, such as \"https://s3.example.com:9000\". Empty: AWS, or what the environment (AWS_ENDPOINT_URL_S3) says."`
	PathStyle    bool         `toml:"path_style" comment:"Name the bucket in the path of URLs rather than in the host's name. Most storages that are not AWS want it. Default false."`
	Profile      string       `toml:"profile" comment:"Profile of the shared configuration (~/.aws/config, ~/.aws/credentials) that is used. Empty: the environment says. Credentials come from where AWS's tools look for them: the environment, those files, a web identity, a container's or a machine's role; never from here."`
	StorageClass string       `toml:"storage_class" comment:"Storage class of objects that are written, such as \"STANDARD_IA\" or \"INTELLIGENT_TIERING\"; not one from which they must be restored before they can be read. Empty: the bucket's."`
	SSE          string       `toml:"sse" comment:"Encryption by the storage of objects that are written: \"AES256\", \"aws:kms\" or \"aws:kms:dsse\". Empty: the bucket's."`
	KMSKey       string       `toml:"kms_key" comment:"ID or ARN of the KMS key, with sse = \"aws:kms\" or \"aws:kms:dsse\". Empty: AWS's own."`
	Checksums    string       `toml:"checksums" comment:"\"when_supported\": uploads have a CRC32, which the storage checks. \"when_required\": only where the protocol demands it, for storages that do not know them. \"auto\": the first on AWS, the second with an endpoint. Empty: \"auto\"."`
	Memory       config.Bytes `toml:"memory" comment:"What all uploads together hold in memory, at least 16MiB. Large objects are sent in parts of 16MiB or more, as many at once as fit; more is faster on long lines. 0: 32MiB."`
}

const (
	checksumsAuto      = "auto"
	checksumsSupported = "when_supported"
	checksumsRequired  = "when_required"

	// partSize is how many bytes are sent by one request at least, if there are more.
	partSize = 16 << 20
	// maxParts is how many parts an upload has at most. partsAimed is how many it is cut into if its size is known.
	maxParts, partsAimed = 10_000, 9_000
	// maxParallel is how many parts of one object are sent at once at most.
	maxParallel   = 16
	defaultMemory = 32 << 20
	// defaultRegion is what signatures are made for where nobody has regions.
	defaultRegion = "us-east-1"
)

func (c Config) withDefaults() Config {
	c.Checksums = cmp.Or(c.Checksums, checksumsAuto)
	c.Memory = cmp.Or(c.Memory, defaultMemory)
	return c
}

// Check reports what is wrong, as config.Invalid errors whose keys begin with
// prefix, such as "backend[0].s3.".
func (c Config) Check(prefix string) (errs []error) {
	bad := func(key, format string, args ...any) {
		errs = append(errs, config.Invalid(prefix+key, format, args...))
	}
	if !isBucket(c.Bucket) {
		bad("bucket", "%q is not the name of a bucket", c.Bucket)
	}
	if c.Prefix != "" {
		dir, ok := strings.CutSuffix(c.Prefix, "/")
		if !ok || fetcher.CheckKey(dir) != nil || !isName(dir) || len(dir) > maxName/2 {
			bad("prefix", "%q is not the beginning of an object's name, up to a \"/\"", c.Prefix)
		}
	}
	if c.Endpoint != "" {
		u, err := url.Parse(c.Endpoint)
		if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
			bad("endpoint", "%q is not http(s)://host:port", withoutUser(c.Endpoint))
		}
	}
	if strings.ContainsAny(c.Region, "/ .:@") {
		bad("region", "%q is not a region, such as \"eu-central-1\"", c.Region)
	}
	switch types.ServerSideEncryption(c.SSE) {
	case "", types.ServerSideEncryptionAes256:
		if c.KMSKey != "" {
			bad("kms_key", "is of no use without sse = \"aws:kms\"")
		}
	case types.ServerSideEncryptionAwsKms, types.ServerSideEncryptionAwsKmsDsse:
	default:
		bad("sse", "%q is not \"AES256\", \"aws:kms\" or \"aws:kms:dsse\"", c.SSE)
	}
	for _, text := range []struct{ key, value string }{{"storage_class", c.StorageClass}, {"kms_key", c.KMSKey}, {"profile", c.Profile}} {
		if !config.IsText(text.value) {
			bad(text.key, "%q has characters that cannot be in it", text.value)
		}
	}
	switch c.Checksums {
	case "", checksumsAuto, checksumsSupported, checksumsRequired:
	default:
		bad("checksums", "%q is not \"auto\", \"when_supported\" or \"when_required\"", c.Checksums)
	}
	if c.Memory != 0 && c.Memory < partSize {
		bad("memory", "%v is less than a part, which has %v", c.Memory, config.Bytes(partSize))
	}
	return errs
}

// isBucket takes more than AWS does: others allow upper case and "_", and AWS's access points are ARNs.
func isBucket(s string) bool {
	if len(s) < 1 || len(s) > 255 || s == "." || s == ".." {
		return false
	}
	if strings.HasPrefix(s, "arn:") {
		return !strings.ContainsAny(s, "?#\\ ")
	}
	return strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_") == ""
}

// withoutUser returns a URL for a message.
func withoutUser(u string) string {
	if i := strings.LastIndexByte(u, '@'); i >= 0 {
		return "…" + u[i:]
	}
	return u
}

// maxName is the length of an object's name in bytes at most.
const maxName = 1024

// isName reports whether s can be written in XML, in which S3 lists names.
func isName(s string) bool {
	return utf8.ValidString(s) && !strings.ContainsAny(s, "\uFFFE\uFFFF")
}

func (c Config) checksums(endpoint bool) aws.RequestChecksumCalculation {
	if c.Checksums == checksumsRequired || c.Checksums == checksumsAuto && endpoint {
		return aws.RequestChecksumCalculationWhenRequired
	}
	return aws.RequestChecksumCalculationWhenSupported
}
