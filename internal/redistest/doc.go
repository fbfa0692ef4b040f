// Package redistest starts what tests need of Redis: servers, clusters, Sentinels, and proxies that lose replies. All
// are real redis-server processes on free ports of this machine, which end with the tests, even if those are aborted.
// The services under test log in as a user who has the rules of the file redis.acl, in the directory of the package
// under test or above it in the same module, and no others.
//
// What a function starts ends as its name says: New… takes a test and ends with it; Start… returns an error, and the
// caller closes; Shared… is there for all tests of a package, one after the other.
package redistest
