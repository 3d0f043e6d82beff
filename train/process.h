/* What a program does once, before anything else. */
#ifndef II_PROCESS_H
#define II_PROCESS_H

/* Lets idle OpenMP threads sleep soon. By default libgomp's threads spin for milliseconds at the
 * end of every parallel loop; when the loader's threads or another program need a processor, all
 * the others then wait for the one that lost its own: measured, training is up to ten times slower
 * on a busy machine, and equally fast on an idle one. The library reads its settings when it is
 * loaded, so this sets GOMP_SPINCOUNT and starts the program again, once. Does nothing when the
 * user has set GOMP_SPINCOUNT or OMP_WAIT_POLICY. Call it first in main. */
void ii_process_prepare(char **argv);

#endif
