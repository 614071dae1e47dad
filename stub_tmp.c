#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <signal.h>
#include <unistd.h>
#include <sys/stat.h>
static volatile sig_atomic_t got; static void h(int s){got=s;}
int main(int c,char**v){
 if(!strcmp(v[1],"tokenize")) return 0;
 if(getenv("SLURM_STEP_NUM_TASKS")&&atoi(getenv("SLURM_STEP_NUM_TASKS"))>1&&!getenv("PMIX_RANK")) {fprintf(stderr,"lonely\n");return 69;}
 signal(SIGUSR1,h);int steps=0;char dir[500]="";
 for(int i=2;i<c;i++){sscanf(v[i],"training.steps=%d",&steps);sscanf(v[i],"job.output_dir=\"%499[^\"]",dir);}
 MPI_Init(&c,&v);int r,n;MPI_Comm_rank(MPI_COMM_WORLD,&r);MPI_Comm_size(MPI_COMM_WORLD,&n);
 char p[600];sprintf(p,"%s/metrics.jsonl",dir);mkdir(dir,0755);
 int done=0;FILE*f=fopen(p,"r");if(f){char l[100];while(fgets(l,100,f))done++;fclose(f);}
 MPI_Barrier(MPI_COMM_WORLD);
 for(int i=done+1;i<=steps;i++){int g=got,s=0;
  usleep(100000);
  if(r==0){f=fopen(p,"a");fprintf(f,"{\"step\": %d}\n",i);fclose(f);printf("step %d/%d\n",i,steps);fflush(stdout);}
  MPI_Allreduce(&g,&s,1,MPI_INT,MPI_SUM,MPI_COMM_WORLD);
  if(s){MPI_Finalize();usleep(r*150000);return 75;}
 }
 MPI_Finalize();return 0;}
