package gateway

import (
	"net/netip"
	"strings"
	"testing"
)

// The deny list holds for every address that leads to a denied one.
func TestDeniedAddresses(t *testing.T) {
	deny := prefixes("127.0.0.0/8", "::1/128", "10.0.0.0/8", "0.0.0.0/8")
	for address, want := range map[string]bool{
		"127.0.0.1": true, "::1": true, "::ffff:127.0.0.1": true, "0.0.0.0": true, "::": true, "10.1.2.3": true,
		"64:ff9b::a01:203": true, "2002:a01:203::1": true, "::1%lo": true, "::10.1.2.3": true, "::ffff:0:10.1.2.3": true,
		"192.0.2.1": false, "2001:db8::1": false, "64:ff9b::c000:201": false, "2001:db8::a01:203": false,
	} {
		if got := isDenied(netip.MustParseAddr(address), deny); got != want {
			t.Errorf("%s: %v, want %v", address, got, want)
		}
	}
	if isDenied(netip.MustParseAddr("::1"), prefixes("0.0.0.0/8")) {
		t.Error("IPv6's loopback address is taken for 0.0.0.1")
	}
}

// By default no address is connected to that is a cloud's metadata service, however it is written.
func TestDefaultDeny(t *testing.T) {
	deny := prefixes(strings.Split(DefaultDeny, ",")...)
	for _, test := range []struct{ address, source string }{
		{"169.254.169.254", "AWS: https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/instancedata-data-retrieval.html"},
		{"fd00:ec2::254", "AWS: the same"},
		{"169.254.170.2", "AWS ECS: https://docs.aws.amazon.com/AmazonECS/latest/developerguide/task-iam-roles.html"},
		{"169.254.170.23", "AWS EKS: https://docs.aws.amazon.com/eks/latest/userguide/pod-id-agent-setup.html"},
		{"fd00:ec2::23", "AWS EKS: the same"},
		{"169.254.169.254", "Google: https://cloud.google.com/compute/docs/metadata/querying-metadata"},
		{"fd20:ce::254", "Google, machines with IPv6 only: in the code of several projects, not in its documentation"},
		{"169.254.169.254", "Azure: https://learn.microsoft.com/azure/virtual-machines/instance-metadata-service"},
		{"168.63.129.16", "Azure: https://learn.microsoft.com/azure/virtual-network/what-is-ip-address-168-63-129-16"},
		{"100.100.100.200", "Alibaba: https://www.alibabacloud.com/help/en/ecs/user-guide/view-instance-metadata"},
		{"fd00:100::100:200", "Alibaba: https://github.com/canonical/cloud-init, tests of DataSourceAliYun"},
		{"169.254.169.254", "Oracle: https://docs.oracle.com/en-us/iaas/Content/Compute/Tasks/gettingmetadata.htm"},
		{"fd00:c1::a9fe:a9fe", "Oracle: in the code of several projects, not in its documentation"},
		{"192.0.0.192", "Oracle: https://docs.oracle.com/en/cloud/cloud-at-customer/occ-get-started/" +
			"retrieve-predefined-instance-metadata.html"},
		{"169.254.169.254", "DigitalOcean: https://docs.digitalocean.com/reference/api/metadata/"},
		{"169.254.169.254", "Hetzner: https://docs.hetzner.cloud/reference/cloud#server-metadata"},
		{"169.254.169.254", "OpenStack: https://docs.openstack.org/nova/latest/admin/metadata-service.html"},
		{"fe80::a9fe:a9fe", "OpenStack: the same"},
		{"fe80::a9fe:a9fe%eth0", "OpenStack: the same"},
		{"169.254.42.42", "Scaleway: https://www.scaleway.com/en/developers/api/instance/user-data"},
		{"fd00:42::42", "Scaleway: the same"},
		{"fd00:a9fe:a9fe::1", "Akamai: https://techdocs.akamai.com/cloud-computing/docs/metadata-service-api"},
	} {
		for _, form := range formsOf(netip.MustParseAddr(test.address)) {
			if !isDenied(form, deny) {
				t.Errorf("%s is not denied, which is %s (%s)", form, test.address, test.source)
			}
		}
	}
	for _, address := range []string{
		"127.0.0.1", "10.0.0.1", "192.168.1.1", "8.8.8.8", "100.100.100.201", "168.63.129.17", "192.0.0.191", "::1", "0.0.0.0",
		"fd00::1", "fd20:ce::253", "2606:4700::6810:1", "64:ff9b::808:808", "2002:808:808::1", "::ffff:10.0.0.1",
	} {
		if isDenied(netip.MustParseAddr(address), deny) {
			t.Errorf("%s is denied", address)
		}
	}
}

// formsOf returns an address and, if it is of IPv4, the addresses of IPv6 that hold it.
func formsOf(address netip.Addr) []netip.Addr {
	if !address.Is4() {
		return []netip.Addr{address}
	}
	ipv4 := address.As4()
	forms := []netip.Addr{address}
	for prefix, at := range map[string][4]int{
		"::":                      {12, 13, 14, 15},
		"::ffff:0:0":              {12, 13, 14, 15}, // mapped
		"::ffff:0:0:0":            {12, 13, 14, 15}, // translated
		"64:ff9b::":               {12, 13, 14, 15},
		"64:ff9b:1:0::":           {6, 7, 9, 10},
		"64:ff9b:1:ab00::":        {7, 9, 10, 11},
		"64:ff9b:1:abcd::":        {9, 10, 11, 12},
		"64:ff9b:1:abcd:0:ef01::": {12, 13, 14, 15},
		"2002::1":                 {2, 3, 4, 5},
		"2001:0:0:0:8000:63bf::":  {4, 5, 6, 7},     // Teredo
		"2001:db8::5efe:0:0":      {12, 13, 14, 15}, // ISATAP
		"fe80::200:5efe:0:0":      {12, 13, 14, 15}, // ISATAP
	} {
		b := netip.MustParseAddr(prefix).As16()
		for i := range ipv4 {
			b[at[i]] = ipv4[i]
		}
		forms = append(forms, netip.AddrFrom16(b))
	}
	client := netip.MustParseAddr("2001:0:4136:e378:8000:63bf::").As16() // Teredo
	for i := range ipv4 {
		client[12+i] = ^ipv4[i]
	}
	return append(forms, netip.AddrFrom16(client))
}
