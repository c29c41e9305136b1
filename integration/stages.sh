#!/usr/bin/env bash
# Makes one target after the other until one fails, and says what each took.
# Usage: stages.sh TARGET..., in the folder of the Makefile; MAKE is the make to use.
set -u
summary=
for stage; do
	echo "== $stage"
	began=$SECONDS
	"${MAKE:-make}" --no-print-directory "$stage"
	code=$?
	[ $code = 0 ] && verdict=ok || verdict=FAILED
	printf -v line '%-12s %5d s  %s' "$stage" $((SECONDS - began)) $verdict
	echo "== $line"
	summary+="$line"$'\n'
	[ $code = 0 ] || break
done
printf '\n%s%-12s %5d s\n' "$summary" "in all" $SECONDS
exit $code
