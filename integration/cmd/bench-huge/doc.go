// Command bench-huge moves one blob that is larger than disks here: a web server makes it as it is read, an origin reads it cold, and a
// node's agent takes it from the swarm, as containerd has it do, all three behind links of one rate. It says how long that took beside a
// plain download over such a link in the same run, and how much memory origin and agent had above what they had idle.
//
// Origin and node have their files in memory, and what the node has verified (its map on the disk says so) is cut out of both files
// as holes, behind their backs: nobody reads it again. So that the result proves the digest, but leaves no blob.
//
// With -push the blob goes all the way instead: through a gateway to S3, cold to another server, which has only its bucket in common
// with the first, and from there to a node.
package main
