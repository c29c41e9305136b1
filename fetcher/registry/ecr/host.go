package ecr

import "regexp"

// Registry is what the name of a registry's host says.
type Registry struct {
	Region string
	FIPS   bool // only with validated cryptography
	Dual   bool // IPv4 and IPv6
}

var hostPattern = regexp.MustCompile(`^[0-9]{12}\.dkr([.-])ecr(-fips)?\.([a-z0-9-]+)\.` +
	`(?:(amazonaws\.com(?:\.cn)?|amazonaws\.eu|sc2s\.sgov\.gov|c2s\.ic\.gov|cloud\.adc-e\.uk|csp\.hci\.ic\.gov)|` +
	`on\.(?:aws|amazonwebservices\.com\.cn|amazonwebservices\.eu))$`)

// Parse reads a host's name such as 123456789012.dkr.ecr.eu-west-1.amazonaws.com. ok is
// false if it is none of a private registry at ECR.
func Parse(host string) (r Registry, ok bool) {
	m := hostPattern.FindStringSubmatch(host)
	if m == nil || (m[1] == "-") == (m[4] != "") { // "dkr-ecr" is of names for both families of addresses
		return Registry{}, false
	}
	return Registry{Region: m[3], FIPS: m[2] != "", Dual: m[1] == "-"}, true
}
